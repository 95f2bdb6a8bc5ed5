"""Sampling engines: vLLM, and transformers as fallback."""
