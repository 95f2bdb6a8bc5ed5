"""Per-token log-probabilities from hidden states, without ever holding [tokens, vocabulary].

The output embedding is applied to a few rows at a time. When it is frozen (LoRA) the derivative of each log-probability
by its hidden state, W[y] − softmax(h Wᵀ) W, is formed in the same pass, so backward costs no matrix product at all;
when it is trained, backward forms the logits of each chunk once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden · weightᵀ) at the targets.

    Args:
        hidden: shape [tokens, hidden size].
        weight: output embedding, shape [vocabulary, hidden size].
        targets: token ids, shape [tokens].

    Returns:
        fp32 log-probabilities in nats, shape [tokens]; differentiable in `hidden` and `weight`.
    """
    return _TokenLogprobs.apply(hidden, weight, targets)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        result = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        slope = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight)
            log_normalizer = logits.logsumexp(dim=-1)
            chosen = logits.gather(1, targets[rows, None]).squeeze(1)
            result[rows] = chosen - log_normalizer
            if slope is not None:
                probabilities = logits.sub_(log_normalizer[:, None]).exp_().to(weight.dtype)
                slope[rows] = weight[targets[rows]] - probabilities @ weight
        ctx.slope = slope
        ctx.save_for_backward(hidden, weight, targets)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        hidden, weight, targets = ctx.saved_tensors
        if ctx.slope is not None:
            return ctx.slope * gradient[:, None].to(ctx.slope.dtype), None, None
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(hidden, weight):
            by_logits = _logits(hidden[rows], weight).softmax(dim=-1).neg_()
            by_logits[torch.arange(by_logits.shape[0]), targets[rows]] += 1
            by_logits = (by_logits * gradient[rows, None]).to(weight.dtype)
            by_hidden[rows] = by_logits @ weight
            by_weight += by_logits.T @ hidden[rows]
        return by_hidden, by_weight.to(weight.dtype), None


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).float()


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
