"""Attention over packed rows, through transformers' attention interface: nothing is computed that a mask would hide.

On GPUs it is FlexAttention, whose block mask skips what no query sees (arXiv 2412.05496). Elsewhere a row is taken apart into
prompts and responses, and each is attended to by plain products with what it sees: that is faster than the CPU's fused kernel,
whose backward is slow in bf16 and which computes what the mask hides.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "iris_grouped"
BLOCK = 128  # queries or keys that FlexAttention looks at together
Parts = list[list[int]]


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    parts: Parts | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each group of a packed row; without `parts`, `sdpa_attention_forward`.

    Args:
        module: the attention layer.
        query: shape [1, heads, tokens, head size].
        key: shape [1, key heads, tokens, head size].
        value: the same.
        attention_mask: from `packed_mask`; without `parts`, what transformers makes.
        parts: of each group, the tokens of its prompt and of each response; they add up to the row.
        options: as for `sdpa_attention_forward`.

    Returns:
        Shape [1, tokens, heads, head size], and None for the weights.
    """
    if parts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in fp32
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    with torch.autocast(query.device.type, enabled=False):
        return _ByParts.apply(query[0], key[0], value[0], parts, options["scaling"])[None], None


def packed_mask(parts: Parts, device: torch.device) -> Tensor | BlockMask:
    """What a model takes as `attention_mask` for a row of `parts`: who sees whom, where attention asks for it.

    Args:
        parts: of each group, the tokens of its prompt and of each response.
        device: the model's.

    Returns:
        FlexAttention's block mask on a GPU; elsewhere an empty mask, which transformers hands through as it is.
    """
    return flex_mask(parts, device) if device.type == "cuda" else torch.empty(0, 0, 0, 0)


def flex_mask(parts: Parts, device: torch.device) -> BlockMask:
    """A query sees a key of its group that is not later and belongs to the prompt or to the same response.

    Which blocks anybody sees is found from the parts' lengths: nothing of the size [tokens, tokens] is held.
    """
    lengths = torch.tensor(parts)
    part = torch.arange(lengths.numel())
    prompt = part // lengths.shape[1] * lengths.shape[1]
    part_of = part.repeat_interleave(lengths.flatten())
    tokens = len(part_of)
    held = torch.zeros(-(-tokens // BLOCK), len(part))  # tokens of each part in each block
    held.index_put_((torch.arange(tokens) // BLOCK, part_of), torch.ones(tokens), accumulate=True)
    related = (part[:, None] == part) | (prompt[:, None] == part)
    pairs = held @ related.float() @ held.T  # of a query and a key, whichever comes first
    whole = (pairs == BLOCK**2).tril(-1)
    some = (pairs > 0).tril() & ~whole
    part_of, prompt_of = part_of.to(device), prompt[part_of].to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        other = part_of[key]
        return (query >= key) & ((other == part_of[query]) | (other == prompt_of[query]))

    blocks = (side for dense in (some, whole) for side in _listed(dense, device))
    return BlockMask.from_kv_blocks(
        *blocks, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens)
    )


def _listed(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each row of a Boolean matrix, how many are true, and where (the others after them); for one batch and head."""
    places = blocks.int().argsort(dim=-1, descending=True, stable=True)
    counts = blocks.sum(dim=-1)
    return counts.int()[None, None].to(device), places.int()[None, None].to(device)


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
        for prompt, own in _blocks(parts):
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
        for prompt, own in _blocks(ctx.parts):
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


def _blocks(parts: Parts) -> Iterator[tuple[slice, slice]]:
    """Each block's tokens, and where the prompt before them lies that they see, too (nowhere for the first block of a group)."""
    start = 0
    for prompt_tokens, first, *others in parts:
        prompt = slice(start, start + prompt_tokens)
        own = slice(start, prompt.stop + first)
        yield slice(start, start), own
        for length in others:
            own = slice(own.stop, own.stop + length)
            if length:
                yield prompt, own
        start = own.stop


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


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)  # where no mask is given, as in generation
