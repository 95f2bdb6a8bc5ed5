"""Attention over a packed row on a GPU, by PyTorch's Flash Attention for varlen sequences (arXiv 2307.08691)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from iris_core.modeling.attention.layout import Layout, VarlenSequences

MAX_HEAD_SIZE = 256


def fits(value: Tensor) -> bool:
    """Whether Flash Attention takes values of this dtype and head size on this GPU."""
    return (
        value.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] <= MAX_HEAD_SIZE
        and value.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(value.device) >= (8, 0)
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, window: int | None = None
) -> Tensor:
    """softmax(scaling · q kᵀ) v of each query over the keys that it sees.

    Shapes are those of `iris_core.modeling.attention.segments.attend`.
    """
    sequences = layout.varlen
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    result: Tensor = varlen.varlen_attn(
        query,
        _RepeatPrompts.apply(key, sequences),
        _RepeatPrompts.apply(value, sequences),
        sequences.cu_seqlens_q,
        sequences.cu_seqlens_k,
        sequences.max_seqlen_q,
        sequences.max_seqlen_k,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=True,
    )
    return result


class _RepeatPrompts(torch.autograd.Function):
    """Keys or values of a row, those of a prompt once for each response; backward sums in a fixed order."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sequences: VarlenSequences) -> Tensor:
        ctx.sequences = sequences
        return tensor.index_select(0, sequences.key_tokens)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad_output,), sequences = grad_outputs, ctx.sequences
        total = grad_output.index_select(0, sequences.own_keys)
        for keys, copied in zip(sequences.copies, sequences.copied, strict=True):
            total.addcmul_(grad_output.index_select(0, keys), copied.to(total.dtype))
        return total, None
