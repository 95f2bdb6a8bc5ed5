"""`torch.compile` of element-wise steps on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def compile_on_gpu(function: Function) -> Function:
    """Compiles `function` by TorchInductor where its first argument is on a GPU; a CPU runs it unchanged.

    A GPU multiplies so fast that each further pass over memory costs time. Compiling takes seconds, once per process.
    On a CPU a compiled step was hardly faster, and the first one took half a minute (benchmarks/notes.md).

    Args:
        function: of tensors and plain numbers, without gradients.
    """
    compiled = functools.cache(lambda: torch.compile(function))

    @functools.wraps(function)
    def run(first: torch.Tensor, *others: Any) -> Any:
        return (compiled() if first.is_cuda else function)(first, *others)

    return run  # type: ignore[return-value]
