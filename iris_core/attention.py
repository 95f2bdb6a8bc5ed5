"""Attention over packed rows, through transformers' attention interface: groups do not pay for one another.

A row's mask lets nothing pass between its groups, so each group is attended to by itself: n groups cost 1/n of the row's
full square. The mask inside a group (its prompt is shared, its responses do not see each other) stays as it is.
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
    group_lengths: list[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`sdpa_attention_forward` on each group of a packed row; without `group_lengths`, on all of the input.

    Args:
        module: the attention layer.
        query: shape [1, heads, tokens, head size].
        key: shape [1, key heads, tokens, head size].
        value: the same.
        attention_mask: shape [1, 1, tokens, tokens], True where a query may see a key.
        group_lengths: tokens of each group; they add up to the row.
        options: as for `sdpa_attention_forward`.

    Returns:
        Shape [1, tokens, heads, head size], and None for the weights.
    """
    if group_lengths is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    fast_products = query.device.type == "cpu" and query.dtype == torch.bfloat16
    attend = plain_attention if fast_products else sdpa_attention_forward
    outputs, start = [], 0
    for length in group_lengths:
        own = slice(start, start + length)
        q, k, v = (side[:, :, own] for side in (query, key, value))
        outputs.append(attend(module, q, k, v, attention_mask[:, :, own, own], **options)[0])
        start += length
    return torch.cat(outputs, dim=1), None


def plain_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one group as two matrix products, the softmax in fp32: transformers' eager numerics.

    On a CPU with bf16 products these outrun the fused kernel, whose backward is slow there. Query heads that share a key
    head are stacked, so that keys and values are not repeated. Shapes as for `grouped_attention`.
    """
    _, heads, length, size = query.shape
    key_heads = key.shape[1]
    stacked = query.reshape(key_heads, -1, size)
    scores = torch.bmm(stacked, key[0].transpose(1, 2)).float().mul_(scaling)
    scores = scores.view(heads, length, length).masked_fill_(~attention_mask[0], -torch.inf)
    weights = scores.softmax(dim=-1).to(query.dtype).view(key_heads, -1, length)
    result = torch.bmm(weights, value[0]).view(heads, length, -1)
    return result.transpose(0, 1)[None], None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)  # where no mask is given, as in generation
