"""Several steps over the same elements as one kernel, where that pays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def one_kernel(function: Function) -> Function:
    """`function`, compiled by TorchInductor where its first argument lies on a GPU; a CPU runs it as it is.

    A GPU multiplies so fast that every further pass over memory shows, and compiling takes seconds, once for a process. On a
    CPU a compiled step was hardly faster, and its first one took half a minute (benchmarks/notes.md).

    Args:
        function: of tensors and plain numbers, without gradients.
    """
    compiled = functools.cache(lambda: torch.compile(function))

    @functools.wraps(function)
    def choose(first: torch.Tensor, *others: Any) -> Any:
        return (compiled() if first.is_cuda else function)(first, *others)

    return choose  # type: ignore[return-value]
