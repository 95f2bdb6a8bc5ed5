"""Per-token log-probabilities from hidden states, without ever holding [tokens, vocabulary].

The output embedding is applied to a few rows at a time. When it is frozen (LoRA) the derivative of each log-probability
by its hidden state is formed in the same pass, so that forward and backward together cost two products with the
embedding instead of the three of recomputation; when it is trained, backward forms the logits of each chunk once more.
"""

from __future__ import annotations

from typing import Any

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
            logits = _logits(hidden[rows], weight, scale, softcap)
            log_normalizer = logits.logsumexp(dim=-1)
            result[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - log_normalizer
            if slope is not None:
                by_logits = _slope(logits, log_normalizer, targets[rows], scale, softcap)
                slope[rows] = by_logits.to(weight.dtype) @ weight
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
            logits = _logits(hidden[rows], weight, ctx.scale, ctx.softcap)
            log_normalizer = logits.logsumexp(dim=-1)
            by_logits = _slope(logits, log_normalizer, targets[rows], ctx.scale, ctx.softcap)
            by_logits = (by_logits * gradient[rows, None]).to(weight.dtype)
            by_hidden[rows] = by_logits @ weight
            by_weight += by_logits.T @ hidden[rows]
        return by_hidden, by_weight.to(weight.dtype), None, None, None


def _logits(hidden: Tensor, weight: Tensor, scale: float, softcap: float | None) -> Tensor:
    """fp32 logits, shape [rows, vocabulary]."""
    logits = (hidden @ weight.T).float()
    if scale != 1.0:
        logits.mul_(scale)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _slope(
    logits: Tensor, log_normalizer: Tensor, targets: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Derivative of the log-probability of each row's target by hidden · weightᵀ; overwrites `logits`."""
    bend = None if softcap is None else 1 - (logits / softcap).square()
    slope = logits.sub_(log_normalizer[:, None]).exp_().neg_()
    slope[torch.arange(slope.shape[0], device=slope.device), targets] += 1
    if bend is not None:
        slope.mul_(bend)
    return slope if scale == 1.0 else slope.mul_(scale)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
