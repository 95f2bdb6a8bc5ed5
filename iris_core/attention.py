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
    outputs, start = [], 0
    for length in group_lengths:
        own = slice(start, start + length)
        parts = (side[:, :, own] for side in (query, key, value))
        mask = attention_mask[:, :, own, own]
        outputs.append(sdpa_attention_forward(module, *parts, mask, **options)[0])
        start += length
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)  # where no mask is given, as in generation
