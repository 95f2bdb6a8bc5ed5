"""Gives PEFT's plain LoRA layers, and blocks of them, the faster forward of `iris_core.modeling.kernels.lora`.

- What: `forward` of LoRA layers and SwiGLU blocks of one model.
- Why: PEFT computes the adapter in fp32 and in several passes over the output, layer by layer.
- Since: PEFT 0.21 and transformers 5.19. The layer's attributes (`lora_A`, `scaling`, `lora_variant`, …) are PEFT's
  internals.
- It can go when PEFT computes a plain layer in the model's dtype, and layers with one input together.
- It lasts as long as the model: merging and disabling the adapter work as before.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Sequence
from typing import Any

from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation

from iris_core.modeling.kernels.lora import FrozenLayer, lora_linears, lora_swiglu

SWIGLU = "down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))\n        return down_proj"


def fuse_lora(model: nn.Module) -> None:
    """Gives plain LoRA layers in `model` (one adapter, no dropout, no variant), and blocks of them, a faster forward.

    Args:
        model: a PeftModel, or any model; layers of other kinds stay unchanged.
    """
    for module in model.modules():
        if _is_plain(module):
            module.forward = functools.partial(_SharedInputLora(module).output, 0)
    for module in model.modules():
        if _is_swiglu(module):
            module.forward = types.MethodType(_forward_swiglu, module)
        elif _is_attention(module):
            layers = module.q_proj, module.k_proj, module.v_proj
            shared = _SharedInputLora(*layers)
            for index, layer in enumerate(layers):
                layer.forward = functools.partial(shared.output, index)


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
    """Whether it is down(silu(gate(x)) · up(x)) of plain LoRA layers, as in Llama, Mistral and Qwen2."""
    layers = [getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(map(_is_plain, layers)):
        return False
    activation = getattr(block, "act_fn", None)
    has_formula = SWIGLU in inspect.getsource(type(block).forward)  # other classes scale or clip in between
    return has_formula and isinstance(activation, (nn.SiLU, SiLUActivation))


def _is_attention(block: Any) -> bool:
    """Whether it has the projections of attention in Llama, Mistral and Qwen2, all of them plain LoRA layers."""
    return all(_is_plain(getattr(block, name, None)) for name in ("q_proj", "k_proj", "v_proj"))


def _is_enabled(layer: Any) -> bool:
    return isinstance(layer, Linear) and not (layer.disable_adapters or layer.merged)


class _SharedInputLora:
    """Plain LoRA layers that are called one after another with the same input: the first call computes all outputs."""

    def __init__(self, *layers: Any):
        self.layers = layers
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}  # by index of the layer; removed when asked for

    def output(self, index: int, x: Tensor) -> Tensor:
        """The output of the layer at `index` for `x`."""
        if not all(map(_is_enabled, self.layers)):
            return Linear.forward(self.layers[index], x)
        if self.input is not x or index not in self.outputs:
            frozen, factors = _frozen_and_factors(self.layers)
            self.input = x
            self.outputs = dict(enumerate(lora_linears(x, frozen, factors)))
        output = self.outputs.pop(index)
        if not self.outputs:
            self.input = None
        return output


def _forward_swiglu(block: Any, x: Tensor) -> Tensor:
    layers = block.gate_proj, block.up_proj, block.down_proj
    if not all(map(_is_enabled, layers)):
        return block.down_proj(silu(block.gate_proj(x)) * block.up_proj(x))
    return lora_swiglu(x, *_frozen_and_factors(layers))


def _frozen_and_factors(layers: Sequence[Any]) -> tuple[tuple[FrozenLayer, ...], list[Tensor]]:
    """The frozen part of each layer, and A and B of each, in turn."""
    frozen, factors = [], []
    for layer in layers:
        base, (name,) = layer.get_base_layer(), layer.active_adapters
        frozen.append(FrozenLayer(base.weight, base.bias, layer.scaling[name]))
        factors += [layer.lora_A[name].weight, layer.lora_B[name].weight]
    return tuple(frozen), factors
