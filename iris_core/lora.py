"""LoRA layers whose forward and backward are nothing but matrix products in the model's own number format.

PEFT's layer copies its input to the adapter's fp32, multiplies there, scales and adds in further passes over the
output. Here the low-rank product is added in place by the matrix product itself, and the adapter, which stays in fp32
for the optimiser, is rounded to the model's format once for each use.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def streamline(model: nn.Module) -> None:
    """Gives every plain LoRA layer in `model` (one adapter, no dropout, no variant) the faster forward.

    Args:
        model: a PeftModel, or any model; layers of other kinds stay as they are.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        if isinstance(module, Linear) and _is_plain(module):
            module.forward = types.MethodType(_forward, module)


def _is_plain(layer: Any) -> bool:
    (name, *others) = layer.active_adapters
    return (
        not others
        and type(layer.get_base_layer()) is nn.Linear
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
    )


def _forward(layer: Any, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    if layer.disable_adapters or layer.merged:
        return base(x)
    (name,) = layer.active_adapters
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    result: Tensor = _LoraLinear.apply(x, base.weight, base.bias, down, up, layer.scaling[name])
    return result


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + b + s·(x Aᵀ) Bᵀ with W and b frozen (arXiv 2106.09685, equation 3)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:  # fmt: skip
        rows = x.flatten(0, -2)
        down_, up_ = down.to(x.dtype), up.to(x.dtype)
        low = rows @ down_.T
        result = linear(rows, weight, bias).addmm_(low, up_.T, alpha=scaling)
        ctx.save_for_backward(rows, low, weight, down_, up_)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, down.dtype
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, low, weight, down, up = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        by_low = (gradient @ up).mul_(ctx.scaling)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = (gradient @ weight).addmm_(by_low, down).view(ctx.shape)
        by_down = (by_low.T @ rows).to(ctx.dtype)
        by_up = (gradient.T @ low).mul_(ctx.scaling).to(ctx.dtype)
        return by_x, None, None, by_down, by_up, None
