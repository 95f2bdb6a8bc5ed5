"""Per-token log-probabilities from hidden states, without the full logits [tokens, vocabulary].

The lm_head's weight W is applied tile by tile: some tokens by a part of the vocabulary, with an online softmax
(arXiv 1805.02867), so that memory grows with neither. While W is frozen (LoRA), the gradient of each log-probability
with respect to its hidden state is computed in the same pass. It needs Σ_v softmax_v W_v, which is attention with W as
keys and values. So value and gradient together cost two matmuls with W; recomputation costs three. While W is trained,
backward computes the logits of each tile again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iris_core.modeling.kernels.tiles import CPU_TILE, GPU_TILE


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
        weight: of the lm_head, shape [vocabulary, hidden size].
        targets: token ids, shape [tokens].
        scale: of the logits (Cohere, Granite).
        softcap: bound on the logits (Gemma 2).

    Returns:
        fp32 log-probabilities in nats, shape [tokens]; differentiable in `hidden` and `weight`.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # cast here, since backward runs outside of autocast
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(kind, enabled=False):
        return _TokenLogprobs.apply(hidden, weight, targets, scale, softcap)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        target_logit, log_sum_exp = hidden.new_empty(2, len(hidden), 1, dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        for rows in _token_tiles(hidden):
            found = _online_softmax(hidden[rows], weight, targets[rows, None], scale, softcap, grad_hidden is not None)
            target_logit[rows], log_sum_exp[rows] = found.target_logit, found.log_sum_exp
            if grad_hidden is not None:
                grad_hidden[rows] = scale * (found.softcap_gradient * weight[targets[rows]] - found.mean_weight)
        ctx.grad_hidden, ctx.scale, ctx.softcap = grad_hidden, scale, softcap
        ctx.save_for_backward(hidden, weight, targets, log_sum_exp)
        return (target_logit - log_sum_exp).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        hidden, weight, targets, log_sum_exp = ctx.saved_tensors
        if ctx.grad_hidden is not None:
            return ctx.grad_hidden * grad_output[:, None].to(ctx.grad_hidden.dtype), None, None, None, None
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weight = torch.empty_like(weight)
        grad_scaled = ctx.scale * grad_output[:, None]
        for entries in _vocabulary_tiles(weight):
            grad_entries = torch.zeros_like(weight[entries], dtype=torch.float32)
            for rows in _token_tiles(hidden):
                tile, columns = hidden[rows] @ weight[entries].T, targets[rows, None] - entries.start
                grad_tile = _tile_gradient(tile, columns, log_sum_exp[rows], grad_scaled[rows], ctx.scale, ctx.softcap)
                grad_hidden[rows] += grad_tile @ weight[entries]
                grad_entries += grad_tile.T @ hidden[rows]
            grad_weight[entries] = grad_entries
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None


class _Softmax(NamedTuple):
    """The softmax of some tokens over the whole vocabulary, fp32.

    Attributes:
        target_logit: shape [rows, 1].
        softcap_gradient: derivative of the soft cap at the target, shape [rows, 1].
        log_sum_exp: log Σ e^z, shape [rows, 1].
        mean_weight: Σ_v softmax_v · (derivative of the soft cap) · W_v, shape [rows, hidden size]; empty if not needed.
    """

    target_logit: Tensor
    softcap_gradient: Tensor
    log_sum_exp: Tensor
    mean_weight: Tensor


def _online_softmax(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float | None, with_mean: bool
) -> _Softmax:
    """One pass over the vocabulary; sums are relative to the largest logit so far."""
    size = hidden.shape[1] if with_mean else 0
    mean_weight = hidden.new_zeros(len(hidden), size, dtype=torch.float32)
    state = _init_state(mean_weight)
    for entries in _vocabulary_tiles(weight):
        tile, columns = hidden @ weight[entries].T, targets - entries.start
        exp_logits, rescale = _online_softmax_update(tile, columns, state, scale, softcap)
        if with_mean:
            mean_weight.mul_(rescale).add_(exp_logits @ weight[entries])
    target_logit, softcap_gradient, sum_exp, max_logit = state
    mean_weight = mean_weight.div_(sum_exp) if with_mean else mean_weight
    return _Softmax(target_logit, softcap_gradient, max_logit + sum_exp.log(), mean_weight)


def _init_state(like: Tensor) -> Tensor:
    """State before the first tile, shape [4, rows, 1]: target logit, its softcap gradient, Σ e^(z - max), max."""
    state = like.new_zeros(4, len(like), 1)
    state[1], state[3] = 1.0, -torch.inf
    return state


def _online_softmax_update(
    tile: Tensor, columns: Tensor, state: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Adds a tile to the state.

    Args:
        tile: hidden · weightᵀ, shape [rows, entries]; is overwritten.
        columns: of the targets in the tile, some outside of it, shape [rows, 1].
        state: as from `_init_state`; is updated.
        scale: of the logits.
        softcap: bound on them.

    Returns:
        e^(z - max) times the softcap gradient, in the dtype of `tile`, and the factor on sums of earlier tiles.
    """
    if tile.is_cuda:
        from iris_core.modeling.kernels import logprobs_triton

        return logprobs_triton.online_softmax_update(tile, columns, state, scale, softcap)
    target_logit, target_gradient, sum_exp, max_logit = state
    logits, softcap_gradient = _logits(tile, scale, softcap)
    _copy_at_targets(target_logit, logits, columns)
    before = max_logit.clone()
    torch.maximum(max_logit, logits.amax(dim=-1, keepdim=True), out=max_logit)
    rescale, exp_logits = before.sub_(max_logit).exp_(), logits.sub_(max_logit).exp_()
    sum_exp.mul_(rescale).add_(exp_logits.sum(dim=-1, keepdim=True))
    if softcap_gradient is not None:
        _copy_at_targets(target_gradient, softcap_gradient, columns)
        exp_logits.mul_(softcap_gradient)
    return exp_logits.to(tile.dtype), rescale


def _tile_gradient(
    tile: Tensor, columns: Tensor, log_sum_exp: Tensor, grad_output: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """grad_output · (1 at the target − softmax) · softcap gradient, in the dtype of `tile`; shape [rows, entries]."""
    if tile.is_cuda:
        from iris_core.modeling.kernels import logprobs_triton

        return logprobs_triton.tile_gradient(tile, columns, log_sum_exp, grad_output, scale, softcap)
    logits, softcap_gradient = _logits(tile, scale, softcap)
    gradient = logits.sub_(log_sum_exp).exp_().neg_()
    inside, column = _inside(columns, gradient)
    gradient.scatter_add_(1, column, inside.to(gradient.dtype))
    factor = grad_output if softcap_gradient is None else grad_output * softcap_gradient
    return gradient.mul_(factor).to(tile.dtype)


def _logits(tile: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """fp32 logits of a tile, and the softcap gradient where there is a soft cap; shape [rows, entries]."""
    logits = tile.float()
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is None:
        return logits, None
    capped = logits.div_(softcap).tanh_()
    return capped * softcap, 1 - capped.square()


def _copy_at_targets(values: Tensor, tile: Tensor, columns: Tensor) -> None:
    """Copies the tile's values at the targets inside of it to `values`, shape [rows, 1]."""
    inside, column = _inside(columns, tile)
    values.copy_(torch.where(inside, tile.gather(1, column), values))


def _inside(columns: Tensor, tile: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each column is inside the tile, and the columns clamped to it; shape [rows, 1]."""
    return (columns >= 0) & (columns < tile.shape[1]), columns.clamp(0, tile.shape[1] - 1)


def _token_tiles(hidden: Tensor) -> Iterator[slice]:
    return _slices(len(hidden), _tile_size(hidden)[0])


def _vocabulary_tiles(weight: Tensor) -> Iterator[slice]:
    return _slices(len(weight), _tile_size(weight)[1])


def _tile_size(like: Tensor) -> tuple[int, int]:
    return CPU_TILE if like.device.type == "cpu" else GPU_TILE


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))
