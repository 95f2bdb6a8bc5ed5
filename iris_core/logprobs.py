"""Per-token log-probabilities from hidden states, without ever holding [tokens, vocabulary].

The output embedding is applied to a few rows at a time. When it is frozen (LoRA) the derivative of each log-probability
by its hidden state is formed in the same pass, so that forward and backward together cost two products with the
embedding instead of the three of recomputation; when it is trained, backward forms the logits of each chunk once more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """log softmax of the logits at the targets; logits z = scale · hidden · weightᵀ, or softcap · tanh(z / softcap).

    Args:
        hidden: shape [tokens, hidden size].
        weight: output embedding, shape [vocabulary, hidden size].
        targets: token ids, shape [tokens].
        scale: of the logits (Cohere, Granite).
        softcap: bound on the logits (Gemma 2).

    Returns:
        fp32 log-probabilities in nats, shape [tokens]; differentiable in `hidden` and `weight`.
    """
    return _TokenLogprobs.apply(hidden, weight, targets, scale, softcap)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float | None
    ) -> Tensor:  # fmt: skip
        result = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        slope = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        for rows in _chunks(hidden, weight):
            chunk = _softmax(hidden[rows], weight, targets[rows], scale, softcap)
            result[rows] = chunk.logprobs
            if slope is not None:
                away = (chunk.spread.to(weight.dtype) @ weight) / chunk.total
                slope[rows] = scale * (chunk.at_target * weight[targets[rows]] - away)
        ctx.slope, ctx.scale, ctx.softcap = slope, scale, softcap
        ctx.save_for_backward(hidden, weight, targets)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, targets = ctx.saved_tensors
        if ctx.slope is not None:
            return ctx.slope * gradient[:, None].to(ctx.slope.dtype), None, None, None, None
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(hidden, weight):
            chunk = _softmax(hidden[rows], weight, targets[rows], ctx.scale, ctx.softcap)
            outer = ctx.scale * gradient[rows, None]
            by_logits = chunk.spread.mul_(-outer / chunk.total)
            by_logits.scatter_add_(1, targets[rows, None], outer * chunk.at_target)
            by_logits = by_logits.to(weight.dtype)
            by_hidden[rows] = by_logits @ weight
            by_weight += by_logits.T @ hidden[rows]
        return by_hidden, by_weight.to(weight.dtype), None, None, None


class _Softmax(NamedTuple):
    """The softmax of some rows, in the pieces that value and derivative need: one exponential for both.

    Attributes:
        logprobs: of the targets, shape [rows].
        spread: e^{z − max z}, times the derivative of the soft cap; shape [rows, vocabulary].
        total: Σ e^{z − max z}, shape [rows, 1].
        at_target: derivative of the soft cap at the targets, shape [rows, 1].
    """

    logprobs: Tensor
    spread: Tensor
    total: Tensor
    at_target: Tensor


def _softmax(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float | None
) -> _Softmax:
    logits = (hidden @ weight.T).float()
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    bend = None if softcap is None else 1 - (logits / softcap).square()
    top, chosen = logits.amax(dim=-1, keepdim=True), logits.gather(1, targets[:, None])
    spread = logits.sub_(top).exp_()
    total = spread.sum(dim=-1, keepdim=True)
    logprobs = (chosen - top - total.log()).squeeze(1)
    if bend is None:
        return _Softmax(logprobs, spread, total, torch.ones_like(top))
    return _Softmax(logprobs, spread.mul_(bend), total, bend.gather(1, targets[:, None]))


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
