"""RMSNorm and rotary embedding with fewer passes over memory than transformers' own, which keep less for backward.

For models of the Llama, Mistral and Qwen2 classes, whose modules stay as they are but for the function that is called.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaModel, MistralModel, PreTrainedModel, Qwen2Model
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from iris_core.modeling.kernels.compiled import one_kernel

MODELS = (LlamaModel, MistralModel, Qwen2Model)
NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)


def fuse(model: PreTrainedModel) -> None:
    """Gives `model` the faster functions where it is of a class that they fit; others stay as they are.

    The rotary embedding is a function of transformers' module: it is replaced for all models of the class in this process.
    """
    if not isinstance(model.base_model, MODELS):
        return
    sys.modules[type(model.base_model).__module__].apply_rotary_pos_emb = rotary  # type: ignore[attr-defined]
    for module in model.modules():
        if isinstance(module, NORMS):
            module.forward = types.MethodType(_norm, module)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb` of transformers: each pair of entries (i, i + size/2) turned by its angle (arXiv 2104.09864).

    Args:
        query: shape [batch, heads, tokens, size].
        key: the same with its own number of heads.
        cos: of the angles, shape [batch, tokens, size], its two halves equal.
        sin: the same.
        unsqueeze_dim: where heads stand.
    """
    turned: tuple[Tensor, Tensor] = _Rotary.apply(
        query, key, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    )
    return turned


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return _RmsNorm.apply(hidden_states, module.weight, module.variance_epsilon)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(query, key, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (by_query, by_key), (cos, sin) = gradients, ctx.saved_tensors
        return *_turned(by_query, by_key, cos, -sin), None, None


@one_kernel
def _turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    half = query.shape[-1] // 2
    sin = sin[..., :half]
    turned = []
    for x in (query, key):
        result = x * cos
        result[..., :half].addcmul_(x[..., half:], sin, value=-1)
        result[..., half:].addcmul_(x[..., :half], sin)
        turned.append(result)
    return turned[0], turned[1]


class _RmsNorm(torch.autograd.Function):
    """w · x / rms(x), rounded to x's format before w as in transformers (arXiv 1910.07467); x and 1/rms(x) are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        result, scale = _normed(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight, scale) = gradients, ctx.saved_tensors
        return *_norm_gradients(gradient, x, weight, scale, ctx.needs_input_grad[1]), None


@one_kernel
def _normed(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return weight * (wide * scale).to(x.dtype), scale


@one_kernel
def _norm_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    normed = x.float() * scale
    by_weight = (gradient * normed).flatten(0, -2).sum(dim=0) if needs_weight else None
    outer = (gradient * weight).float()
    along = torch.linalg.vecdot(outer, normed).div_(-x.shape[-1])[..., None]
    return outer.addcmul_(normed, along).mul_(scale).to(x.dtype), by_weight
