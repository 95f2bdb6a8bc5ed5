"""Attention over a packed row on a CPU: plain products of each part with what it sees.

That is faster than the CPU's fused kernel, whose backward is slow in bf16 and which computes what the mask hides.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from iris_core.modeling.attention.layout import Layout, Parts, blocks


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(cap(scaling · q kᵀ)) v of each query over what it sees, where cap(s) = softcap · tanh(s / softcap).

    Args:
        query: shape [heads, tokens, key size].
        key: shape [key heads, tokens, key size].
        value: shape [key heads, tokens, value size].
        layout: of the row.
        scaling: of the scores.
        window: how many tokens a query sees, itself included; None: all before it.
        softcap: bound on the scores (Gemma 2).
        sinks: a score for each head of a key that all queries see and whose value is 0 (gpt-oss), shape [heads].

    Returns:
        Shape [tokens, heads, value size].
    """
    scores = _Scores(scaling, window, softcap)
    result: Tensor = _ByParts.apply(query, key, value, sinks, layout.parts, scores)
    return result


class _Scores(NamedTuple):
    """What scores are made of besides queries and keys; see `attend`."""

    scaling: float
    window: int | None
    softcap: float | None


class _ByParts(torch.autograd.Function):
    """softmax(cap(s·q kᵀ)) v over a whole row in blocks of plain products; backward forms the softmax weights again.

    A prompt with its first response is one causal block; every other response is one, with the prompt before it. Query heads
    that share a key head are rows of one product, token by token, so that keys and values are not repeated. Queries are scaled,
    and scores rounded, in the inputs' format; the softmax is taken in fp32, as in transformers' eager attention. query has the
    shape [heads, tokens, size], key and value [key heads, tokens, size]; the result [tokens, heads, size].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, parts: Parts, scores: _Scores
    ) -> Tensor:
        key_heads, tokens, size = key.shape
        query = query.view(key_heads, -1, tokens, size).transpose(1, 2)
        query = query.clone(memory_format=torch.contiguous_format).mul_(scores.scaling)
        key, value = key.contiguous(), value.contiguous()
        if sinks is not None:
            sinks = sinks.to(query.dtype).view(key_heads, 1, -1)
        result = value.new_empty(*query.shape[:3], value.shape[-1])
        for prompt, own in blocks(parts):
            keys, values = _seen(key, prompt, own), _seen(value, prompt, own)
            weights = _weights(query[:, own], keys, scores, sinks).of_keys
            torch.bmm(weights, values, out=result[:, own].flatten(1, 2))
        ctx.save_for_backward(query, key, value, sinks)
        ctx.parts, ctx.scores = parts, scores
        return result.transpose(0, 1).flatten(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        key_heads, tokens, stack, size = query.shape
        (gradient,) = gradients
        gradient = gradient.view(tokens, key_heads, stack, -1).transpose(0, 1).contiguous()
        by_query, by_key, by_value = (torch.empty_like(side) for side in (query, key, value))
        by_sinks = None if sinks is None else torch.zeros_like(sinks)
        for prompt, own in blocks(ctx.parts):
            keys, values = _seen(key, prompt, own), _seen(value, prompt, own)
            outer, stacked = gradient[:, own].flatten(1, 2), query[:, own].flatten(1, 2)
            weights = _weights(query[:, own], keys, ctx.scores, sinks)
            by_scores, by_sink = _score_gradients(weights, torch.bmm(outer, values.mT))
            if by_sink is not None and by_sinks is not None:
                by_sinks += by_sink.unflatten(1, (-1, stack)).sum(dim=1, keepdim=True)
            torch.bmm(by_scores, keys, out=by_query[:, own].flatten(1, 2))
            _hand_back(by_key, torch.bmm(by_scores.mT, stacked), prompt, own)
            _hand_back(by_value, torch.bmm(weights.of_keys.mT, outer), prompt, own)
        by_query = by_query.mul_(ctx.scores.scaling).transpose(1, 2).reshape(-1, tokens, size)
        by_sinks = None if by_sinks is None else by_sinks.flatten()
        return by_query, by_key, by_value, by_sinks, None, None


class _Weights(NamedTuple):
    """Softmax weights of a block's queries, shape [key heads, tokens · heads a key head, ...].

    Attributes:
        whole: of what is seen, the sink last where there is one.
        of_keys: of the keys alone.
        slope: derivative of the soft cap at each score; None without one.
    """

    whole: Tensor
    of_keys: Tensor
    slope: Tensor | None


def _weights(query: Tensor, keys: Tensor, made: _Scores, sinks: Tensor | None) -> _Weights:
    """The weights; query has the shape [key heads, tokens, heads a key head, size], sinks [key heads, 1, heads a key head]."""
    bias = _causal_bias(query.shape[1], keys.shape[1], query.shape[2], query.dtype, made.window)
    slope, softcap = None, made.softcap
    if softcap is None:
        scores = torch.baddbmm(bias, query.flatten(1, 2), keys.mT)
    else:
        capped = torch.bmm(query.flatten(1, 2), keys.mT).div_(softcap).tanh_()
        scores, slope = bias + softcap * capped, 1 - capped.square()
    if sinks is None:
        weights = scores.softmax(dim=-1)
        return _Weights(weights, weights, slope)
    sink = sinks.expand(-1, query.shape[1], -1).flatten(1)[..., None]
    weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)
    return _Weights(weights, weights[..., :-1], slope)


def _score_gradients(weights: _Weights, by_keys: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of the scores before the soft cap, and of the sinks where there are any, from those of the keys' weights."""
    whole, seen = weights.whole, by_keys.shape[-1]
    has_sink = whole.shape[-1] > seen
    by_weights = pad(by_keys, (0, 1)) if has_sink else by_keys
    by_whole = torch.ops.aten._softmax_backward_data(by_weights, whole, -1, whole.dtype)
    by_scores = by_whole[..., :seen] if has_sink else by_whole
    if weights.slope is not None:
        by_scores = by_scores * weights.slope
    return by_scores, by_whole[..., seen] if has_sink else None


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
def _causal_bias(length: int, seen: int, stack: int, dtype: torch.dtype, window: int | None) -> Tensor:
    """0 where the query may see the key, −∞ elsewhere; shape [1, length · stack, seen]. The last query is at the last key."""
    bias = torch.full((length, seen), -torch.inf, dtype=dtype)
    too_far = bias.tril(seen - length - window) if window and window < seen else None
    bias.triu_(seen - length + 1)
    bias = bias if too_far is None else torch.minimum(bias, too_far)
    return bias.repeat_interleave(stack, dim=0)[None]
