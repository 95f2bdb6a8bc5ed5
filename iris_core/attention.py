"""Attention over packed rows, through transformers' attention interface: hardly anything is computed that a mask would hide.

A GPU runs Flash Attention on sequences cut out of the row, or, where that does not fit, FlexAttention, whose block mask skips
what no query sees (arXiv 2412.05496). A CPU multiplies each part with what it sees.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from iris_core import attention_flash, attention_parts
from iris_core.layout import Layout

GROUPED = "iris_grouped"
FLEX_ONLY = ("softcap", "s_aux", "position_bias")  # options that change the scores


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each group of a packed row; without `layout`, `sdpa_attention_forward`.

    Args:
        module: the attention layer.
        query: shape [1, heads, tokens, head size].
        key: shape [1, key heads, tokens, head size].
        value: the same.
        attention_mask: what transformers makes; `no_mask()` where there is a layout, which says it all.
        layout: of the row.
        options: as for `sdpa_attention_forward`.

    Returns:
        Shape [1, tokens, heads, head size], and None for the weights.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in fp32
    kind = kind_for(value, options)
    if kind == "flex":
        return flex_attention_forward(module, query, key, value, layout.mask, **options)[0], None
    attend = attention_flash.attend if kind == "flash" else attention_parts.attend
    with torch.autocast(value.device.type, enabled=False):
        return attend(query[0], key[0], value[0], layout, options["scaling"])[None], None


def kind_for(value: Tensor, options: dict[str, Any]) -> Literal["parts", "flash", "flex"]:
    """What attends to a row of such values: `iris_core.attention_parts`, `iris_core.attention_flash` or FlexAttention."""
    if not value.is_cuda:
        return "parts"
    plain = all(options.get(name) is None for name in FLEX_ONLY)
    return "flash" if plain and attention_flash.fits(value) else "flex"


def no_mask() -> Tensor:
    """What a model takes as `attention_mask` so that transformers makes none of its own: it hands four dimensions through."""
    return torch.empty(0, 0, 0, 0)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)  # where no mask is given, as in generation
