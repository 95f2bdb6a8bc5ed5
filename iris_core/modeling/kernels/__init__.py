"""Kernels: log-probs without the full logits, on CPUs and in Triton, each with a plain twin in its test."""
