"""Attention over a packed row on a CPU: matmuls of each segment with the keys that it sees.

This is faster than the CPU's fused kernel: its backward is slow in bf16, and it computes what the mask hides.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from iris_core.data.packing import Segments
from iris_core.modeling.attention.layout import Layout, blocks


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
    """softmax(cap(scaling · q kᵀ)) v of each query over the keys that it sees, cap(s) = softcap · tanh(s / softcap).

    Args:
        query: shape [heads, tokens, key size].
        key: shape [key heads, tokens, key size].
        value: shape [key heads, tokens, value size].
        layout: of the row.
        scaling: of the scores.
        window: how many tokens a query sees, itself included; None: all before it.
        softcap: bound on the scores (Gemma 2).
        sinks: for each head, the score of a key that all queries see and that has the value 0 (gpt-oss), shape [heads].

    Returns:
        Shape [tokens, heads, value size].
    """
    options = _ScoreOptions(scaling, window, softcap)
    result: Tensor = _SegmentAttention.apply(query, key, value, sinks, layout.segments, options)
    return result


class _ScoreOptions(NamedTuple):
    """How scores are computed from queries and keys; see `attend`."""

    scaling: float
    window: int | None
    softcap: float | None


class _SegmentAttention(torch.autograd.Function):
    """softmax(cap(s·q kᵀ)) v over a whole row in blocks of matmuls; backward computes the softmax weights again.

    A prompt with its first response is one causal block; each other response is one, with the prompt before it. Query
    heads that share a key head are rows of one matmul, token by token, so that keys and values are not repeated.
    Queries are scaled, and scores rounded, in the dtype of the inputs. The softmax is in fp32, as in transformers'
    eager attention. query has the shape [heads, tokens, size], key and value [key heads, tokens, size]; the result has
    the shape [tokens, heads, size].
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        segments: Segments,
        options: _ScoreOptions,
    ) -> Tensor:
        key_heads, tokens, size = key.shape
        query = query.view(key_heads, -1, tokens, size).transpose(1, 2)
        query = query.clone(memory_format=torch.contiguous_format).mul_(options.scaling)
        key, value = key.contiguous(), value.contiguous()
        if sinks is not None:
            sinks = sinks.to(query.dtype).view(key_heads, 1, -1)
        result = value.new_empty(*query.shape[:3], value.shape[-1])
        for prompt, own in blocks(segments):
            keys, values = _with_prompt(key, prompt, own), _with_prompt(value, prompt, own)
            weights = _weights(query[:, own], keys, options, sinks).of_keys
            torch.bmm(weights, values, out=result[:, own].flatten(1, 2))
        ctx.save_for_backward(query, key, value, sinks)
        ctx.segments, ctx.options = segments, options
        return result.transpose(0, 1).flatten(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        key_heads, tokens, stack, size = query.shape
        (grad_output,) = grad_outputs
        grad_output = grad_output.view(tokens, key_heads, stack, -1).transpose(0, 1).contiguous()
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        grad_sinks = None if sinks is None else torch.zeros_like(sinks)
        for prompt, own in blocks(ctx.segments):
            keys, values = _with_prompt(key, prompt, own), _with_prompt(value, prompt, own)
            grad_block, stacked = grad_output[:, own].flatten(1, 2), query[:, own].flatten(1, 2)
            weights = _weights(query[:, own], keys, ctx.options, sinks)
            grad_scores, grad_sink = _score_gradients(weights, torch.bmm(grad_block, values.mT))
            if grad_sink is not None and grad_sinks is not None:
                grad_sinks += grad_sink.unflatten(1, (-1, stack)).sum(dim=1, keepdim=True)
            torch.bmm(grad_scores, keys, out=grad_query[:, own].flatten(1, 2))
            _accumulate(grad_key, torch.bmm(grad_scores.mT, stacked), prompt, own)
            _accumulate(grad_value, torch.bmm(weights.of_keys.mT, grad_block), prompt, own)
        grad_query = grad_query.mul_(ctx.options.scaling).transpose(1, 2).reshape(-1, tokens, size)
        grad_sinks = None if grad_sinks is None else grad_sinks.flatten()
        return grad_query, grad_key, grad_value, grad_sinks, None, None


class _Weights(NamedTuple):
    """Softmax weights of a block's queries, shape [key heads, tokens · query heads per key head, ...].

    Attributes:
        all: of all keys, and last of the sink where there is one.
        of_keys: of the keys alone.
        softcap_gradient: derivative of the soft cap at each score; None without a soft cap.
    """

    all: Tensor
    of_keys: Tensor
    softcap_gradient: Tensor | None


def _weights(query: Tensor, keys: Tensor, options: _ScoreOptions, sinks: Tensor | None) -> _Weights:
    """Softmax weights of a block.

    Args:
        query: shape [key heads, tokens, query heads per key head, size].
        keys: shape [key heads, keys, size].
        options: of the scores.
        sinks: shape [key heads, 1, query heads per key head].
    """
    bias = _causal_bias(query.shape[1], keys.shape[1], query.shape[2], query.dtype, options.window)
    softcap_gradient, softcap = None, options.softcap
    if softcap is None:
        scores = torch.baddbmm(bias, query.flatten(1, 2), keys.mT)
    else:
        capped = torch.bmm(query.flatten(1, 2), keys.mT).div_(softcap).tanh_()
        scores, softcap_gradient = bias + softcap * capped, 1 - capped.square()
    if sinks is None:
        weights = scores.softmax(dim=-1)
        return _Weights(weights, weights, softcap_gradient)
    sink = sinks.expand(-1, query.shape[1], -1).flatten(1)[..., None]
    weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)
    return _Weights(weights, weights[..., :-1], softcap_gradient)


def _score_gradients(weights: _Weights, grad_weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of the scores before the soft cap, and of the sinks where there are any.

    Args:
        weights: of the block.
        grad_weights: gradient of the weights of the keys.
    """
    softmax, keys = weights.all, grad_weights.shape[-1]
    has_sink = softmax.shape[-1] > keys
    grad_softmax = pad(grad_weights, (0, 1)) if has_sink else grad_weights
    grad_all = torch.ops.aten._softmax_backward_data(grad_softmax, softmax, -1, softmax.dtype)
    grad_scores = grad_all[..., :keys] if has_sink else grad_all
    if weights.softcap_gradient is not None:
        grad_scores = grad_scores * weights.softcap_gradient
    return grad_scores, grad_all[..., keys] if has_sink else None


def _with_prompt(tensor: Tensor, prompt: slice, own: slice) -> Tensor:
    """Keys or values of the prompt and of the block's own tokens, shape [key heads, keys, size]."""
    if prompt.start == prompt.stop:
        return tensor[:, own]
    return torch.cat([tensor[:, prompt], tensor[:, own]], dim=1)


def _accumulate(total: Tensor, gradient: Tensor, prompt: slice, own: slice) -> None:
    """Adds the gradient of `_with_prompt`'s result; the first block of a group, which holds the prompt, comes first."""
    prompt_tokens = prompt.stop - prompt.start
    total[:, own] = gradient[:, prompt_tokens:]
    total[:, prompt] += gradient[:, :prompt_tokens]


@functools.lru_cache(maxsize=512)
def _causal_bias(queries: int, keys: int, stack: int, dtype: torch.dtype, window: int | None) -> Tensor:
    """0 where the query sees the key, else −∞; shape [1, queries · stack, keys]. The last query is the last key."""
    bias = torch.full((queries, keys), -torch.inf, dtype=dtype)
    too_far = bias.tril(keys - queries - window) if window and window < keys else None
    bias.triu_(keys - queries + 1)
    bias = bias if too_far is None else torch.minimum(bias, too_far)
    return bias.repeat_interleave(stack, dim=0)[None]
