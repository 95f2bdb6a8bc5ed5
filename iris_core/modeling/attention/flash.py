"""Attention over a packed row on a GPU, by PyTorch's Flash Attention of sequences of different lengths (arXiv 2307.08691)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from iris_core.modeling.attention.layout import Layout, Seen

MOST_SIZE = 256  # of a head


def fits(value: Tensor) -> bool:
    """Whether it takes values of this format and head size on this GPU."""
    return (
        value.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] <= MOST_SIZE
        and value.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(value.device) >= (8, 0)
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, window: int | None = None
) -> Tensor:
    """softmax(scaling · q kᵀ) v of each query over what it sees; shapes as for `iris_core.modeling.attention.segments.attend`."""
    seen = layout.seen
    query, key, value = (side.transpose(0, 1) for side in (query, key, value))
    result: Tensor = varlen.varlen_attn(
        query,
        _Repeated.apply(key, seen),
        _Repeated.apply(value, seen),
        seen.query_starts,
        seen.key_starts,
        seen.most_queries,
        seen.most_keys,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=True,
    )
    return result


class _Repeated(torch.autograd.Function):
    """Keys or values of a row, those of a prompt once for each of its responses; gradients are added up in one order always."""

    @staticmethod
    def forward(ctx: Any, side: Tensor, seen: Seen) -> Tensor:
        ctx.seen = seen
        return side.index_select(0, seen.tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), seen = gradients, ctx.seen
        total = gradient.index_select(0, seen.own)
        for places, counts in zip(seen.copies, seen.copied, strict=True):
            total.addcmul_(gradient.index_select(0, places), counts.to(total.dtype))
        return total, None
