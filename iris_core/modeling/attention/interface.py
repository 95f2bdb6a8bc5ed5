"""Attention over packed rows, registered with transformers' attention interface.

Little is computed that a mask would hide. A GPU runs Flash Attention on the row's sequences. Where that does not fit it
runs FlexAttention, and its block mask skips what no query sees (arXiv 2412.05496). A CPU runs matmuls of each segment
with the keys that it sees.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from iris_core.modeling.attention import flash, segments
from iris_core.modeling.attention.layout import Layout

GROUPED = "iris_grouped"
FLEX_ONLY = ("softcap", "s_aux", "position_bias")  # options that change scores


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each group of a packed row; without `layout`, what transformers computes.

    Args:
        module: the attention layer.
        query: shape [1, heads, tokens, head size].
        key: shape [1, key heads, tokens, head size].
        value: the same.
        attention_mask: transformers' mask; not used where there is a layout (see `no_mask`).
        layout: of the row.
        options: as for `sdpa_attention_forward`.

    Returns:
        Shape [1, tokens, heads, head size], and None for the weights.
    """
    if layout is None:
        return _plain(module, query, key, value, attention_mask, **options)
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in fp32
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    window = layout.window(options.get("sliding_window"))
    kind = kind_for(query, value, options)
    if kind == "flex":
        mask = layout.block_mask(window)
        return flex_attention_forward(module, query, key, value, mask, **options)[0], None
    arguments = query[0], key[0], value[0], layout, scaling, window
    with torch.autocast(value.device.type, enabled=False):
        if kind == "flash":
            return flash.attend(*arguments)[None], None
        extras = options.get("softcap"), options.get("s_aux")
        return segments.attend(*arguments, *extras)[None], None


def _plain(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`sdpa_attention_forward`, or the class's own eager attention for a soft cap or sinks, which SDPA ignores."""
    if options.get("softcap") is None and options.get("s_aux") is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return eager(module, query, key, value, _additive_mask(mask, query, key), **options)[0], None


def _additive_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask to add to the scores for SDPA's `mask`: None means causal, or all keys for a single query."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if queries == 1:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)


def kind_for(query: Tensor, value: Tensor, options: dict[str, Any]) -> Literal["segments", "flash", "flex"]:
    """The implementation for such tensors: `segments` or `flash` of this package, or FlexAttention."""
    if not value.is_cuda:
        return "segments"
    plain = all(options.get(name) is None for name in FLEX_ONLY)
    plain &= query.shape[-1] == value.shape[-1]
    return "flash" if plain and flash.fits(value) else "flex"


def no_mask() -> Tensor:
    """An `attention_mask` for packed rows: transformers passes a mask with four dimensions on and builds none."""
    return torch.empty(0, 0, 0, 0)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)  # where no mask is given, as in generation
