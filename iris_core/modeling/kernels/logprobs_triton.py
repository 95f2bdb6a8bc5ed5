"""The element-wise part of the log-prob kernel on a GPU, in Triton: a tile is read twice and written once.

Each program has a row of the tile. TorchInductor fuses the same steps, but it failed on some widths of a tile and
compiles again for others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS = 4096, 8  # of a program at a time


def online_softmax_update(
    tile: Tensor, columns: Tensor, state: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """As `iris_core.modeling.kernels.logprobs._online_softmax_update`; the first result overwrites `tile`."""
    rescale = torch.empty_like(state[0])
    _update_kernel[(len(tile),)](
        tile,
        columns,
        state,
        rescale,
        *tile.shape,
        scale,
        softcap or 1.0,
        capped=softcap is not None,
        block=_block(tile),
        num_warps=WARPS,
    )
    return tile, rescale


def tile_gradient(
    tile: Tensor, columns: Tensor, log_sum_exp: Tensor, grad_output: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """As `iris_core.modeling.kernels.logprobs._tile_gradient`; the result overwrites `tile`."""
    _gradient_kernel[(len(tile),)](
        tile,
        columns,
        log_sum_exp,
        grad_output,
        tile.shape[1],
        scale,
        softcap or 1.0,
        capped=softcap is not None,
        block=_block(tile),
        num_warps=WARPS,
    )
    return tile


def _block(tile: Tensor) -> int:
    return min(COLUMNS, triton.next_power_of_2(tile.shape[1]))


@triton.jit
def _update_kernel(
    tile, columns, state, rescale, rows, width, scale, softcap, capped: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0)
    values = tile + row.to(tl.int64) * width
    target_logit, target_gradient, sum_exp, max_logit = (
        state + row,
        state + rows + row,
        state + 2 * rows + row,
        state + 3 * rows + row,
    )
    target = tl.load(columns + row)
    if (target >= 0) & (target < width):
        logit, softcap_gradient = _logit(tl.load(values + target).to(tl.float32), scale, softcap, capped)
        tl.store(target_logit, logit)
        tl.store(target_gradient, softcap_gradient)
    before = tl.load(max_logit)
    largest = tl.full([block], float("-inf"), tl.float32)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        raw = tl.load(values + column, mask=column < width, other=0.0).to(tl.float32)
        logit, softcap_gradient = _logit(raw, scale, softcap, capped)
        largest = tl.maximum(largest, tl.where(column < width, logit, float("-inf")))
    now = tl.maximum(before, tl.max(largest, axis=0))
    sums = tl.zeros([block], tl.float32)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        raw = tl.load(values + column, mask=column < width, other=0.0).to(tl.float32)
        logit, softcap_gradient = _logit(raw, scale, softcap, capped)
        exp_logit = tl.where(column < width, tl.exp(logit - now), 0.0)
        sums += exp_logit
        tl.store(values + column, (exp_logit * softcap_gradient).to(values.dtype.element_ty), mask=column < width)
    factor = tl.exp(before - now)
    tl.store(rescale + row, factor)
    tl.store(sum_exp, tl.load(sum_exp) * factor + tl.sum(sums, axis=0))
    tl.store(max_logit, now)


@triton.jit
def _gradient_kernel(
    tile, columns, log_sum_exp, grad_output, width, scale, softcap, capped: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0)
    values = tile + row.to(tl.int64) * width
    target, log_sum, factor = tl.load(columns + row), tl.load(log_sum_exp + row), tl.load(grad_output + row)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        raw = tl.load(values + column, mask=column < width, other=0.0).to(tl.float32)
        logit, softcap_gradient = _logit(raw, scale, softcap, capped)
        gradient = tl.where(column == target, 1.0, 0.0) - tl.exp(logit - log_sum)
        tl.store(
            values + column, (gradient * factor * softcap_gradient).to(values.dtype.element_ty), mask=column < width
        )


@triton.jit
def _logit(raw, scale, softcap, capped: tl.constexpr):
    """The logit, and the softcap gradient."""
    if capped:
        tanh = 2 * tl.sigmoid(2 * raw * scale / softcap) - 1
        return tanh * softcap, 1 - tanh * tanh
    else:
        return raw * scale, 1.0
