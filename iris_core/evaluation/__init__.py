"""The ten benchmarks by lm-evaluation-harness, and answers to held-out prompts, by one engine.

    benchmarks    which task, how many shots, which metric
    folder        where their data is: `mirror` downloads it, `miniature` has a few items of our own
    harness       tasks loaded, model opened, benchmark scored
    prefix_tree   rows of requests that share their prefixes; `prefix_lm` and `prefix_vllm` score with shared prefixes
    records       what is kept of a score, and which settings decide it
    answers       answers by the engine; `heldout` checks those to held-out prompts

Task definitions are the harness's own and stay so. Import the modules: nothing is re-exported here, so that
`benchmarks` and `folder` stay light.
"""
