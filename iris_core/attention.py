"""Attention over packed rows, through transformers' attention interface: nothing is computed that a mask would hide.

A row's mask lets nothing pass between its groups, so each group is attended to by itself: n groups cost 1/n of the row's
full square. On CPUs with bf16 products a group is taken apart once more, into its prompt and each response with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "iris_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    parts: list[list[int]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each group of a packed row; without `parts`, `sdpa_attention_forward` on all of the input.

    Args:
        module: the attention layer.
        query: shape [1, heads, tokens, head size].
        key: shape [1, key heads, tokens, head size].
        value: the same.
        attention_mask: shape [1, 1, tokens, tokens], True where a query may see a key.
        parts: of each group, the tokens of its prompt and of each response; they add up to the row.
        options: as for `sdpa_attention_forward`.

    Returns:
        Shape [1, tokens, heads, head size], and None for the weights.
    """
    if parts is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    fast_products = query.device.type == "cpu" and query.dtype == torch.bfloat16
    outputs, start = [], 0
    for lengths in parts:
        own = slice(start, start + sum(lengths))
        q, k, v = (side[:, :, own] for side in (query, key, value))
        if fast_products:
            outputs += _by_parts(q[0], k[0], v[0], lengths, options["scaling"])
        else:
            mask = attention_mask[:, :, own, own]
            outputs.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0][0])
        start = own.stop
    return torch.cat(outputs)[None], None


def _by_parts(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float
) -> list[Tensor]:
    """One group: its prompt sees itself, each response the prompt and itself; a block is two plain products.

    Query heads that share a key head are stacked, so that keys and values are not repeated.

    Args:
        query: shape [heads, tokens, head size].
        key: shape [key heads, tokens, head size].
        value: the same.
        lengths: tokens of the prompt and of each response.
        scaling: of the scores.

    Returns:
        A tensor of shape [tokens, heads, head size] for each part.
    """
    heads, _, size = query.shape
    key_heads, prompt = key.shape[0], lengths[0]
    outputs, start = [], 0
    for length in filter(None, lengths):  # an empty response has no block
        own = slice(start, start + length)
        keys, values = key[:, own], value[:, own]
        if start:
            keys, values = (
                torch.cat([side[:, :prompt], side[:, own]], dim=1) for side in (key, value)
            )
        stacked = query[:, own].reshape(key_heads, -1, size)
        block = _Block.apply(stacked, keys, values, length, scaling)
        outputs.append(block.view(heads, length, size).transpose(0, 1))
        start = own.stop
    return outputs


class _Block(torch.autograd.Function):
    """softmax(s·q kᵀ) v with the softmax in fp32, as transformers' eager attention; only its rounded weights are kept.

    q has the shape [key heads, stacked · n, size] and k, v the shape [key heads, m, size]. Query i of n sees the keys up to
    m − n + i.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float
    ) -> Tensor:
        scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(scaling)
        seen = key.shape[1]
        hidden = torch.ones(length, seen, dtype=torch.bool, device=query.device)
        scores.view(-1, length, seen).masked_fill_(hidden.triu_(seen - length + 1), -torch.inf)
        weights = scores.softmax(dim=-1).to(query.dtype)
        result = torch.bmm(weights, value)
        ctx.save_for_backward(query, key, value, weights, result)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        query, key, value, weights, result = ctx.saved_tensors
        by_value = torch.bmm(weights.transpose(1, 2), gradient)
        by_scores = torch.bmm(gradient, value.transpose(1, 2)).float()
        by_scores -= (gradient.float() * result).sum(
            dim=-1, keepdim=True
        )  # = Σ weights · by_weights
        scaled = by_scores.mul_(weights).mul_(ctx.scaling).to(query.dtype)
        return (
            torch.bmm(scaled, key),
            torch.bmm(scaled.transpose(1, 2), query),
            by_value,
            None,
            None,
        )


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)  # where no mask is given, as in generation
