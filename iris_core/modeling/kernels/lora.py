"""LoRA layers as autograd functions: forward and backward are matmuls in the model's own dtype and little else.

PEFT's layer copies its input to the adapter's fp32, multiplies there, and scales and adds in further passes over the
output. Here the frozen layer's matmul is accumulated onto the low-rank one. The adapter stays in fp32 for the optimiser
and is rounded to the model's dtype once per use. Layers with the same input (q, k and v of attention) are one function
and share their low-rank matmuls. So is a SwiGLU block of three such layers: its backward recomputes the
block's inner product instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from iris_core.modeling.kernels.compiled import compile_on_gpu

MATMUL_ROWS = 512  # oneDNN runs larger matmuls with few columns on one thread


class FrozenLayer(NamedTuple):
    """The frozen part of a layer y = x Wᵀ + b + s·(x Aᵀ) Bᵀ (arXiv 2106.09685, equation 3).

    Attributes:
        weight: W, shape [out, in].
        bias: b, shape [out].
        scaling: s.
    """

    weight: Tensor
    bias: Tensor | None
    scaling: float


def lora_linears(x: Tensor, frozen: tuple[FrozenLayer, ...], factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs of LoRA layers with the same input.

    Args:
        x: shape [..., in].
        frozen: of each layer.
        factors: A and B of each layer, in turn, shapes [rank, in] and [out, rank].

    Returns:
        The output of each layer, shape [..., out].
    """
    outputs: tuple[Tensor, ...] = _LoraLinears.apply(x, frozen, *factors)
    return outputs


def lora_swiglu(x: Tensor, frozen: tuple[FrozenLayer, ...], factors: Sequence[Tensor]) -> Tensor:
    """down(silu(gate(x)) · up(x)) of LoRA layers.

    Args:
        x: shape [..., in].
        frozen: of gate, up and down.
        factors: A and B of gate, up and down, in turn, shapes [rank, in] and [out, rank].
    """
    result: Tensor = _LoraSwiglu.apply(x, frozen[:2], frozen[2:], *factors)
    return result


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: tuple[FrozenLayer, ...], *factors: Tensor) -> tuple[Tensor, ...]:
        rows, rounded = x.flatten(0, -2), _rounded(factors, frozen, x.dtype)
        outputs, low_rank = _outputs(rows, frozen, rounded)
        ctx.save_for_backward(rows, low_rank, *rounded)
        ctx.frozen, ctx.shape = frozen, x.shape
        return tuple(_unflattened(output, x) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, low_rank, *factors = ctx.saved_tensors
        grads = [grad_output.flatten(0, -2) for grad_output in grad_outputs]
        grad_low_rank, grad_factors = _grad_factors(rows, low_rank, ctx.frozen, factors, grads)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _grad_rows(grad_low_rank, ctx.frozen, factors, grads).view(ctx.shape)
        return grad_x, None, *grad_factors


class _LoraSwiglu(torch.autograd.Function):
    """`lora_swiglu`; the outputs of gate and up are kept for backward, their product is not."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: tuple[FrozenLayer, ...], last: tuple[FrozenLayer, ...], *factors: Tensor
    ) -> Tensor:
        rows, rounded = x.flatten(0, -2), _rounded(factors, first + last, x.dtype)
        (gate, up), low_rank = _outputs(rows, first, rounded[:4])
        (result,), low_rank_last = _outputs(_gated(gate, up), last, rounded[4:])
        ctx.save_for_backward(rows, low_rank, gate, up, low_rank_last, *rounded)
        ctx.first, ctx.last, ctx.shape = first, last, x.shape
        return _unflattened(result, x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, low_rank, gate, up, low_rank_last, *factors = ctx.saved_tensors
        grads = [grad_output.flatten(0, -2) for grad_output in grad_outputs]
        active, inner = _active_and_inner(gate, up)
        grad_low_rank, grad_last = _grad_factors(inner, low_rank_last, ctx.last, factors[4:], grads)
        del inner
        grad_inner = _grad_rows(grad_low_rank, ctx.last, factors[4:], grads)
        grads = list(_gate_gradients(grad_inner, active, gate, up))
        grad_low_rank, grad_first = _grad_factors(rows, low_rank, ctx.first, factors[:4], grads)
        grad_x = _grad_rows(grad_low_rank, ctx.first, factors[:4], grads) if ctx.needs_input_grad[0] else None
        return None if grad_x is None else grad_x.view(ctx.shape), None, None, *grad_first, *grad_last


def _unflattened(rows: Tensor, x: Tensor) -> Tensor:
    """`rows` in the shape of `x`, not a view for autograd: some models change outputs in place."""
    shaped: Tensor = torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], rows.shape[-1]])
    return shaped


@compile_on_gpu
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate).mul_(up)


@compile_on_gpu
def _active_and_inner(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    active = silu(gate)
    return active, active * up


@compile_on_gpu
def _gate_gradients(grad_inner: Tensor, active: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; not compiled, they reuse the memory of `grad_inner` and `active`."""
    grad_up = active.mul_(grad_inner)
    return torch.ops.aten.silu_backward(grad_inner.mul_(up), gate), grad_up


def _rounded(factors: Sequence[Tensor], layers: Sequence[FrozenLayer], dtype: torch.dtype) -> list[Tensor]:
    """A and s·B of each layer, in turn, in `dtype`."""
    scales = [scale for layer in layers for scale in (1.0, layer.scaling)]
    return [
        (factor if scale == 1.0 else factor * scale).to(dtype) for factor, scale in zip(factors, scales, strict=True)
    ]


def _outputs(rows: Tensor, layers: Sequence[FrozenLayer], factors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Outputs of layers with the same input, and their low-rank matmuls x Aᵀ side by side.

    Args:
        rows: the input, shape [tokens, in].
        layers: one for each output.
        factors: A and s·B of each, in turn.
    """
    low_rank = rows @ torch.cat(tuple(factors[::2])).T
    parts = low_rank.split([len(down) for down in factors[::2]], dim=1)
    outputs = []
    for layer, part, up in zip(layers, parts, factors[1::2], strict=True):
        output = part @ up.T if layer.bias is None else torch.addmm(layer.bias, part, up.T)
        outputs.append(_add_matmul(output, rows, layer.weight.T))
    return outputs, low_rank


def _grad_factors(
    rows: Tensor,
    low_rank: Tensor,
    layers: Sequence[FrozenLayer],
    factors: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the low-rank matmuls, side by side, and of A and B of each layer (autograd casts them to fp32)."""
    downs, ups = factors[::2], factors[1::2]
    ranks = [len(down) for down in downs]
    grad_low_rank = torch.cat([grad @ up for grad, up in zip(grads, ups, strict=True)], dim=1)
    grad_downs = (grad_low_rank.T @ rows).split(ranks)
    grad_ups = [
        (grad.T @ part).mul_(layer.scaling)
        for layer, grad, part in zip(layers, grads, low_rank.split(ranks, dim=1), strict=True)
    ]
    return grad_low_rank, [factor for pair in zip(grad_downs, grad_ups, strict=True) for factor in pair]


def _grad_rows(
    grad_low_rank: Tensor, layers: Sequence[FrozenLayer], factors: Sequence[Tensor], grads: Sequence[Tensor]
) -> Tensor:
    """Gradient of the shared input."""
    grad_rows = grad_low_rank @ torch.cat(tuple(factors[::2]))
    for layer, grad in zip(layers, grads, strict=True):
        _add_matmul(grad_rows, grad, layer.weight)
    return grad_rows


def _add_matmul(total: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """`total` += rows · weight."""
    size = MATMUL_ROWS if rows.device.type == "cpu" else len(rows)
    for part, some in zip(total.split(size), rows.split(size), strict=True):
        part.addmm_(some, weight)
    return total
