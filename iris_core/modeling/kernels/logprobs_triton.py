"""The element-wise part of the log-prob kernel on a GPU, in Triton: a tile's logits are read twice and written once.

Each program has a row of the tile. TorchInductor fuses the same steps, but failed on some widths of a tile, and compiles again
for others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS = 4096, 8  # that a program works on at once


def fold(products: Tensor, places: Tensor, state: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """As `iris_core.modeling.kernels.logprobs._fold`; what it gives takes the place of `products`."""
    shrink = torch.empty_like(state[0])
    _fold_kernel[(len(products),)](
        products,
        places,
        state,
        shrink,
        *products.shape,
        scale,
        softcap or 1.0,
        capped=softcap is not None,
        columns=_columns(products),
        num_warps=WARPS,
    )
    return products, shrink


def by_logits(
    products: Tensor, places: Tensor, log_total: Tensor, outer: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """As `iris_core.modeling.kernels.logprobs._by_logits`, in the place of `products`."""
    _by_logits_kernel[(len(products),)](
        products,
        places,
        log_total,
        outer,
        products.shape[1],
        scale,
        softcap or 1.0,
        capped=softcap is not None,
        columns=_columns(products),
        num_warps=WARPS,
    )
    return products


def _columns(products: Tensor) -> int:
    return min(COLUMNS, triton.next_power_of_2(products.shape[1]))


@triton.jit
def _fold_kernel(
    products, places, state, shrink, rows, width, scale, softcap, capped: tl.constexpr, columns: tl.constexpr
):
    row = tl.program_id(0)
    tile = products + row.to(tl.int64) * width
    chosen, at_target, total, top = (
        state + row,
        state + rows + row,
        state + 2 * rows + row,
        state + 3 * rows + row,
    )
    place = tl.load(places + row)
    if (place >= 0) & (place < width):
        logit, bend = _logit(tl.load(tile + place).to(tl.float32), scale, softcap, capped)
        tl.store(chosen, logit)
        tl.store(at_target, bend)
    before = tl.load(top)
    largest = tl.full([columns], float("-inf"), tl.float32)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        product = tl.load(tile + column, mask=column < width, other=0.0).to(tl.float32)
        logit, bend = _logit(product, scale, softcap, capped)
        largest = tl.maximum(largest, tl.where(column < width, logit, float("-inf")))
    now = tl.maximum(before, tl.max(largest, axis=0))
    sums = tl.zeros([columns], tl.float32)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        product = tl.load(tile + column, mask=column < width, other=0.0).to(tl.float32)
        logit, bend = _logit(product, scale, softcap, capped)
        spread = tl.where(column < width, tl.exp(logit - now), 0.0)
        sums += spread
        tl.store(tile + column, (spread * bend).to(tile.dtype.element_ty), mask=column < width)
    by = tl.exp(before - now)
    tl.store(shrink + row, by)
    tl.store(total, tl.load(total) * by + tl.sum(sums, axis=0))
    tl.store(top, now)


@triton.jit
def _by_logits_kernel(
    products, places, log_total, outer, width, scale, softcap, capped: tl.constexpr, columns: tl.constexpr
):
    row = tl.program_id(0)
    tile = products + row.to(tl.int64) * width
    place, log_sum, factor = tl.load(places + row), tl.load(log_total + row), tl.load(outer + row)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        product = tl.load(tile + column, mask=column < width, other=0.0).to(tl.float32)
        logit, bend = _logit(product, scale, softcap, capped)
        slope = tl.where(column == place, 1.0, 0.0) - tl.exp(logit - log_sum)
        tl.store(tile + column, (slope * factor * bend).to(tile.dtype.element_ty), mask=column < width)


@triton.jit
def _logit(product, scale, softcap, capped: tl.constexpr):
    """The logit, and the derivative of the soft cap."""
    if capped:
        bent = 2 * tl.sigmoid(2 * product * scale / softcap) - 1  # tanh
        return bent * softcap, 1 - bent * bent
    else:
        return product * scale, 1.0
