"""Sampling: vLLM, or transformers where vLLM is not installed, and the responses that they give.

    backends        which engine a setting means on this machine; light, it is asked before anything starts
    engines         the policy loaded into an engine: prompts and seeds in, responses out
    vllm_settings   the arguments of vLLM's engine, for sampling here and for scoring in `evaluation`
    responses       shards of responses as Parquet files

Import the modules: nothing is re-exported here, so that `backends` stays light.
"""
