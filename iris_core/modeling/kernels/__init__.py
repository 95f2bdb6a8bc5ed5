"""Kernels: log-probs without the full logits, LoRA, norms; each has a plain reference in its test."""
