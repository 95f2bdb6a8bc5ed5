"""Attention over a packed row on a CPU: plain products of each part with what it sees.

That is faster than the CPU's fused kernel, whose backward is slow in bf16 and which computes what the mask hides.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from iris_core.layout import Layout, Parts, blocks


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float) -> Tensor:
    """softmax(scaling · q kᵀ) v of each query over what it sees.

    Args:
        query: shape [heads, tokens, size].
        key: shape [key heads, tokens, size].
        value: the same.
        layout: of the row.
        scaling: of the scores.

    Returns:
        Shape [tokens, heads, size].
    """
    result: Tensor = _ByParts.apply(query, key, value, layout.parts, scaling)
    return result


class _ByParts(torch.autograd.Function):
    """softmax(s·q kᵀ) v over a whole row in blocks of plain products; backward forms the softmax weights again.

    A prompt with its first response is one causal block; every other response is one, with the prompt before it. Query heads
    that share a key head are rows of one product, token by token, so that keys and values are not repeated. Queries are scaled,
    and scores rounded, in the inputs' format; the softmax is taken in fp32, as in transformers' eager attention. query has the
    shape [heads, tokens, size], key and value [key heads, tokens, size]; the result [tokens, heads, size].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Parts, scaling: float
    ) -> Tensor:
        key_heads, tokens, size = key.shape
        query = query.view(key_heads, -1, tokens, size).transpose(1, 2)
        query = query.clone(memory_format=torch.contiguous_format).mul_(scaling)
        key, value = key.contiguous(), value.contiguous()
        result = torch.empty_like(query)
        for prompt, own in blocks(parts):
            keys, values = _seen(key, prompt, own), _seen(value, prompt, own)
            weights = _weights(query[:, own], keys)
            torch.bmm(weights, values, out=result[:, own].flatten(1, 2))
        ctx.save_for_backward(query, key, value)
        ctx.parts, ctx.scaling = parts, scaling
        return result.transpose(0, 1).reshape(tokens, -1, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        key_heads, tokens, stack, size = query.shape
        (gradient,) = gradients
        gradient = gradient.view(tokens, key_heads, stack, size).transpose(0, 1).contiguous()
        by_query, by_key, by_value = (torch.empty_like(side) for side in (query, key, value))
        for prompt, own in blocks(ctx.parts):
            keys, values = _seen(key, prompt, own), _seen(value, prompt, own)
            outer, stacked = gradient[:, own].flatten(1, 2), query[:, own].flatten(1, 2)
            weights = _weights(query[:, own], keys)
            by_weights = torch.bmm(outer, values.mT)
            by_scores = torch.ops.aten._softmax_backward_data(
                by_weights, weights, -1, weights.dtype
            )
            torch.bmm(by_scores, keys, out=by_query[:, own].flatten(1, 2))
            _hand_back(by_key, torch.bmm(by_scores.mT, stacked), prompt, own)
            _hand_back(by_value, torch.bmm(weights.mT, outer), prompt, own)
        by_query = by_query.mul_(ctx.scaling).transpose(1, 2).reshape(-1, tokens, size)
        return by_query, by_key, by_value, None, None


def _weights(query: Tensor, keys: Tensor) -> Tensor:
    """Softmax weights, shape [key heads, tokens · heads a key head, seen]; query has [key heads, tokens, heads a key head, size]."""
    bias = _causal_bias(query.shape[1], keys.shape[1], query.shape[2], query.dtype)
    return torch.baddbmm(bias, query.flatten(1, 2), keys.mT).softmax(dim=-1)


def _seen(side: Tensor, prompt: slice, own: slice) -> Tensor:
    """Keys or values of the prompt and of the block, shape [key heads, seen, size]."""
    if prompt.start == prompt.stop:
        return side[:, own]
    return torch.cat([side[:, prompt], side[:, own]], dim=1)


def _hand_back(total: Tensor, gradient: Tensor, prompt: slice, own: slice) -> None:
    """The gradient of what `_seen` gave; a group's first block, which has the prompt in it, comes before the others."""
    before = prompt.stop - prompt.start
    total[:, own] = gradient[:, before:]
    total[:, prompt] += gradient[:, :before]


@functools.lru_cache(maxsize=512)
def _causal_bias(length: int, seen: int, stack: int, dtype: torch.dtype) -> Tensor:
    """0 where the query may see the key, −∞ elsewhere; shape [1, length · stack, seen]. The last query sees all keys."""
    bias = torch.full((length, seen), -torch.inf, dtype=dtype).triu_(seen - length + 1)
    return bias.repeat_interleave(stack, dim=0)[None]
