"""RMSNorm and rotary embedding that pass over memory less often than transformers', and keep less for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iris_core.modeling.kernels.compiled import compile_on_gpu


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb` of transformers: rotates each pair of entries (i, i + size/2) (arXiv 2104.09864).

    Args:
        query: shape [batch, heads, tokens, size].
        key: the same with its own number of heads.
        cos: of the angles, shape [batch, tokens, size], both halves equal.
        sin: the same.
        unsqueeze_dim: axis of the heads.
    """
    rotated: tuple[Tensor, Tensor] = _Rotary.apply(
        query, key, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    )
    return rotated


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """w · x / rms(x), rounded to the dtype of x before the multiplication by w, as in transformers (arXiv 1910.07467).

    Args:
        x: shape [..., size].
        weight: w, shape [size].
        epsilon: added to the mean square.
    """
    normed: Tensor = _RmsNorm.apply(x, weight, epsilon)
    return normed


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotate(query, key, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_query, grad_key), (cos, sin) = grad_outputs, ctx.saved_tensors
        return *_rotate(grad_query, grad_key, cos, -sin), None, None


@compile_on_gpu
def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    half = query.shape[-1] // 2
    sin = sin[..., :half]
    rotated = []
    for x in (query, key):
        result = x * cos
        result[..., :half].addcmul_(x[..., half:], sin, value=-1)
        result[..., half:].addcmul_(x[..., :half], sin)
        rotated.append(result)
    return rotated[0], rotated[1]


class _RmsNorm(torch.autograd.Function):
    """`rms_norm`; x and 1/rms(x) are kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        result, scale = _normalize(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,), (x, weight, scale) = grad_outputs, ctx.saved_tensors
        return *_norm_gradients(grad_output, x, weight, scale, ctx.needs_input_grad[1]), None


@compile_on_gpu
def _normalize(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return weight * (wide * scale).to(x.dtype), scale


@compile_on_gpu
def _norm_gradients(
    grad_output: Tensor, x: Tensor, weight: Tensor, scale: Tensor, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    normed = x.float() * scale
    grad_weight = (grad_output * normed).flatten(0, -2).sum(dim=0) if needs_weight else None
    grad_normed = (grad_output * weight).float()
    projection = torch.linalg.vecdot(grad_normed, normed).div_(-x.shape[-1])[..., None]
    return grad_normed.addcmul_(normed, projection).mul_(scale).to(x.dtype), grad_weight
