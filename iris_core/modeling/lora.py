"""LoRA layers whose forward and backward are nothing but matrix products in the model's own number format.

PEFT's layer copies its input to the adapter's fp32, multiplies there, scales and adds in further passes over the
output. Here the frozen layer's product is added in place to the low-rank one, and the adapter, which stays in fp32
for the optimiser, is rounded to the model's format once for each use. Layers with the same input (q, k and v of attention)
are one function, so that they share their low-rank products. So is a SwiGLU block whose three layers are of that kind; its
backward forms the block's inner product again instead of keeping it.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation
from transformers.pytorch_utils import Conv1D

from iris_core.common.errors import ConfigError
from iris_core.modeling.kernels.compiled import one_kernel

SWIGLU = "down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))\n        return down_proj"
PRODUCT_ROWS = 512  # oneDNN leaves larger products to one thread where they have few columns


def streamline(model: nn.Module) -> None:
    """Gives plain LoRA layers in `model` (one adapter, no dropout, no variant), and blocks of them, a faster forward.

    Args:
        model: a PeftModel, or any model; layers of other kinds stay as they are.
    """
    for module in model.modules():
        if _is_plain(module):
            module.forward = functools.partial(_Together(module).output, 0)
    for module in model.modules():
        if _is_swiglu(module):
            module.forward = types.MethodType(_forward_swiglu, module)
        elif _is_attention(module):
            layers = module.q_proj, module.k_proj, module.v_proj
            together = _Together(*layers)
            for place, layer in enumerate(layers):
                layer.forward = functools.partial(together.output, place)


def check_targets(model: Any, targets: str | list[str]) -> None:
    """Refuses targets of an adapter that fit no layer of `model`, or one that cannot be adapted.

    Args:
        model: a causal language model without an adapter, on any device.
        targets: "all-linear", names (or their ends, from a dot on), or a regular expression for whole names: as in PEFT.

    Raises:
        ConfigError: one of them does.
    """
    linear = _linear_layers(model)
    wanted = targets if isinstance(targets, list) else [targets]
    for target in wanted if targets != "all-linear" or not linear else ():
        found = [name for name, _ in model.named_modules() if _fits(name, target, targets)]
        wrong = [name for name in found if name not in linear]
        if wrong or not found:
            where = f"{wrong[0]}, which cannot be adapted" if wrong else "no layer"
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ConfigError(
                f"training.lora.targets: {target!r} fits {where}; the linear layers of "
                f"{type(model).__name__} are {names or 'none'}: give a list of these, or all-linear"
            )


def _linear_layers(model: Any) -> set[str]:
    """The names of the layers that can be adapted: not the output layer where it is the embedding, too."""
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and f"{name}.weight" not in tied
    }


def _fits(name: str, target: str, targets: str | list[str]) -> bool:
    if isinstance(targets, list):
        return f".{name}".endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error:
        return False


def _is_plain(layer: Any) -> bool:
    if not isinstance(layer, Linear):
        return False
    (name, *others) = layer.active_adapters
    return (
        not others
        and type(layer.get_base_layer()) is nn.Linear
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
    )


def _is_swiglu(block: Any) -> bool:
    """Whether it is down(silu(gate(x)) · up(x)), as in Llama, Mistral and Qwen2, of plain LoRA layers."""
    layers = [getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(map(_is_plain, layers)):
        return False
    activation = getattr(block, "act_fn", None)
    says_so = SWIGLU in inspect.getsource(type(block).forward)  # others scale or clip in between
    return says_so and isinstance(activation, (nn.SiLU, SiLUActivation))


def _is_attention(block: Any) -> bool:
    """Whether it has the projections of attention in Llama, Mistral and Qwen2, all of them plain LoRA layers."""
    return all(_is_plain(getattr(block, name, None)) for name in ("q_proj", "k_proj", "v_proj"))


def _is_on(layer: Any) -> bool:
    return isinstance(layer, Linear) and not (layer.disable_adapters or layer.merged)


class _Together:
    """Plain LoRA layers that are called in turn with the same input: the first call computes the outputs of all."""

    def __init__(self, *layers: Any):
        self.layers = layers
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}  # not asked for yet

    def output(self, place: int, x: Tensor) -> Tensor:
        """What the layer at `place` gives for `x`."""
        if not all(map(_is_on, self.layers)):
            return Linear.forward(self.layers[place], x)
        if self.input is not x or place not in self.outputs:
            frozen, factors = _taken_apart(self.layers)
            self.input = x
            self.outputs = dict(enumerate(_LoraLinears.apply(x, frozen, *factors)))
        output = self.outputs.pop(place)
        if not self.outputs:
            self.input = None
        return output


def _forward_swiglu(block: Any, x: Tensor) -> Tensor:
    layers = block.gate_proj, block.up_proj, block.down_proj
    if not all(map(_is_on, layers)):
        return block.down_proj(silu(block.gate_proj(x)) * block.up_proj(x))
    (gate, up, down), factors = _taken_apart(layers)
    return _LoraSwiglu.apply(x, (gate, up), (down,), *factors)


class _Frozen(NamedTuple):
    """What is not trained of a layer y = x Wᵀ + b + s·(x Aᵀ) Bᵀ (arXiv 2106.09685, equation 3): W, b and s."""

    weight: Tensor
    bias: Tensor | None
    scaling: float


def _taken_apart(layers: Sequence[Any]) -> tuple[tuple[_Frozen, ...], list[Tensor]]:
    """What is frozen of each layer, and its A and B, one layer after another."""
    frozen, factors = [], []
    for layer in layers:
        base, (name,) = layer.get_base_layer(), layer.active_adapters
        frozen.append(_Frozen(base.weight, base.bias, layer.scaling[name]))
        factors += [layer.lora_A[name].weight, layer.lora_B[name].weight]
    return tuple(frozen), factors


class _LoraLinears(torch.autograd.Function):
    """Layers with the same input; as many outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: tuple[_Frozen, ...], *factors: Tensor) -> tuple[Tensor, ...]:
        rows, rounded = x.flatten(0, -2), _rounded(factors, frozen, x.dtype)
        outputs, low = _products(rows, frozen, rounded)
        ctx.save_for_backward(rows, low, *rounded)
        ctx.frozen, ctx.shape = frozen, x.shape
        return tuple(_shaped(output, x) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, *factors = ctx.saved_tensors
        outer = [gradient.flatten(0, -2) for gradient in gradients]
        by_low, by_factors = _by_factors(rows, low, ctx.frozen, factors, outer)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = _by_rows(by_low, ctx.frozen, factors, outer).view(ctx.shape)
        return by_x, None, *by_factors


class _LoraSwiglu(torch.autograd.Function):
    """down(silu(gate(x)) · up(x)); the outputs of gate and up are kept, their product is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: tuple[_Frozen, ...], last: tuple[_Frozen, ...], *factors: Tensor) -> Tensor:
        rows, rounded = x.flatten(0, -2), _rounded(factors, first + last, x.dtype)
        (gate, up), low = _products(rows, first, rounded[:4])
        (result,), low_last = _products(_gated(gate, up), last, rounded[4:])
        ctx.save_for_backward(rows, low, gate, up, low_last, *rounded)
        ctx.first, ctx.last, ctx.shape = first, last, x.shape
        return _shaped(result, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, gate, up, low_last, *factors = ctx.saved_tensors
        outer = [gradient.flatten(0, -2) for gradient in gradients]
        active, inner = _active_and_inner(gate, up)
        by_low, by_last = _by_factors(inner, low_last, ctx.last, factors[4:], outer)
        del inner
        by_inner = _by_rows(by_low, ctx.last, factors[4:], outer)
        outer = list(_gate_gradients(by_inner, active, gate, up))
        by_low, by_first = _by_factors(rows, low, ctx.first, factors[:4], outer)
        by_x = _by_rows(by_low, ctx.first, factors[:4], outer) if ctx.needs_input_grad[0] else None
        return None if by_x is None else by_x.view(ctx.shape), None, None, *by_first, *by_last


def _shaped(rows: Tensor, x: Tensor) -> Tensor:
    """`rows` in the shape of `x`, no view for autograd: some models change outputs in place."""
    shaped: Tensor = torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], rows.shape[-1]])
    return shaped


@one_kernel
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate).mul_(up)


@one_kernel
def _active_and_inner(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    active = silu(gate)
    return active, active * up


@one_kernel
def _gate_gradients(by_inner: Tensor, active: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, in the memory of `by_inner` and `active` where they are not compiled."""
    by_up = active.mul_(by_inner)
    return torch.ops.aten.silu_backward(by_inner.mul_(up), gate), by_up


def _rounded(factors: Sequence[Tensor], layers: Sequence[_Frozen], dtype: torch.dtype) -> list[Tensor]:
    """A and s·B of each layer, in turn."""
    scales = [scale for layer in layers for scale in (1.0, layer.scaling)]
    return [
        (factor if scale == 1.0 else factor * scale).to(dtype) for factor, scale in zip(factors, scales, strict=True)
    ]


def _products(rows: Tensor, layers: Sequence[_Frozen], factors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Outputs of layers with the same input, and their low-rank products x Aᵀ side by side.

    Args:
        rows: the input, shape [tokens, in].
        layers: as many as there are outputs.
        factors: A and s·B of each, in turn.
    """
    low = rows @ torch.cat(tuple(factors[::2])).T
    parts = low.split([len(down) for down in factors[::2]], dim=1)
    outputs = []
    for layer, part, up in zip(layers, parts, factors[1::2], strict=True):
        output = part @ up.T if layer.bias is None else torch.addmm(layer.bias, part, up.T)
        outputs.append(_add_product(output, rows, layer.weight.T))
    return outputs, low


def _by_factors(
    rows: Tensor, low: Tensor, layers: Sequence[_Frozen], factors: Sequence[Tensor], outer: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the low-rank products, side by side, and of each A and B in turn (autograd takes them to fp32)."""
    downs, ups = factors[::2], factors[1::2]
    widths = [len(down) for down in downs]
    by_low = torch.cat([gradient @ up for gradient, up in zip(outer, ups, strict=True)], dim=1)
    by_downs = (by_low.T @ rows).split(widths)
    by_ups = [
        (gradient.T @ part).mul_(layer.scaling)
        for layer, gradient, part in zip(layers, outer, low.split(widths, dim=1), strict=True)
    ]
    return by_low, [factor for pair in zip(by_downs, by_ups, strict=True) for factor in pair]


def _by_rows(by_low: Tensor, layers: Sequence[_Frozen], factors: Sequence[Tensor], outer: Sequence[Tensor]) -> Tensor:
    """Gradient of the input that the layers share."""
    by_rows = by_low @ torch.cat(tuple(factors[::2]))
    for layer, gradient in zip(layers, outer, strict=True):
        _add_product(by_rows, gradient, layer.weight)
    return by_rows


def _add_product(into: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """`into` += rows · weight."""
    size = PRODUCT_ROWS if rows.device.type == "cpu" else len(rows)
    for part, some in zip(into.split(size), rows.split(size), strict=True):
        part.addmm_(some, weight)
    return into
