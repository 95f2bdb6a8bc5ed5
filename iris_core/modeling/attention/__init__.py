"""Attention over packed rows: the layout of a row, and implementations for CPUs and GPUs."""
