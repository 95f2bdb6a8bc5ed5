"""Attention over packed rows: what each token sees, and the implementations for CPUs and GPUs."""
