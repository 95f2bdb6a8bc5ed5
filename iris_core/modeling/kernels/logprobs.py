"""Per-token log-probabilities from hidden states, without ever holding [tokens, vocabulary].

The output embedding W is applied tile by tile: some tokens by a part of the vocabulary, with the softmax taken online
(arXiv 1805.02867), so that memory depends on neither. While W is frozen (LoRA), the derivative of each log-probability by its
hidden state is formed in the same pass: it needs Σ_v softmax_v W_v, which is attention with W as keys and as values, so
that value and gradient together cost two products with W instead of recomputation's three. While W is trained, backward forms
the logits of each tile once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU_TILE = (512, 2048)  # tokens and vocabulary entries: 4 MB of logits
GPU_TILE = (4096, 16384)  # what keeps it busy


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
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # its format in backward, too, which runs outside of it
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
        chosen, log_total = hidden.new_empty(2, len(hidden), 1, dtype=torch.float32)
        slope = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        for rows in _rows(hidden):
            found = _online_softmax(hidden[rows], weight, targets[rows, None], scale, softcap, slope is not None)
            chosen[rows], log_total[rows] = found.chosen, found.log_total
            if slope is not None:
                slope[rows] = scale * (found.at_target * weight[targets[rows]] - found.mean)
        ctx.slope, ctx.scale, ctx.softcap = slope, scale, softcap
        ctx.save_for_backward(hidden, weight, targets, log_total)
        return (chosen - log_total).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, targets, log_total = ctx.saved_tensors
        if ctx.slope is not None:
            return ctx.slope * gradient[:, None].to(ctx.slope.dtype), None, None, None, None
        by_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        by_weight = torch.empty_like(weight)
        outer = ctx.scale * gradient[:, None]
        for part in _parts(weight):
            by_part = torch.zeros_like(weight[part], dtype=torch.float32)
            for rows in _rows(hidden):
                products, places = hidden[rows] @ weight[part].T, targets[rows, None] - part.start
                by_logits = _by_logits(products, places, log_total[rows], outer[rows], ctx.scale, ctx.softcap)
                by_hidden[rows] += by_logits @ weight[part]
                by_part += by_logits.T @ hidden[rows]
            by_weight[part] = by_part
        return by_hidden.to(hidden.dtype), by_weight, None, None, None


class _Softmax(NamedTuple):
    """What the softmax of some tokens comes to, fp32.

    Attributes:
        chosen: logits of the targets, shape [rows, 1].
        at_target: derivative of the soft cap there, shape [rows, 1].
        log_total: log Σ e^z, shape [rows, 1].
        mean: Σ_v softmax_v · (derivative of the soft cap) · W_v, shape [rows, hidden size]; empty if not asked for.
    """

    chosen: Tensor
    at_target: Tensor
    log_total: Tensor
    mean: Tensor


def _online_softmax(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float | None, with_mean: bool
) -> _Softmax:
    """One pass over the vocabulary; sums are kept relative to the largest logit so far."""
    size = hidden.shape[1] if with_mean else 0
    mean = hidden.new_zeros(len(hidden), size, dtype=torch.float32)
    state = _beginning(mean)
    for part in _parts(weight):
        products, places = hidden @ weight[part].T, targets - part.start
        spread, shrink = _fold(products, places, state, scale, softcap)
        if with_mean:
            mean.mul_(shrink).add_(spread @ weight[part])
    chosen, at_target, total, top = state
    return _Softmax(chosen, at_target, top + total.log(), mean.div_(total) if with_mean else mean)


def _beginning(mean: Tensor) -> Tensor:
    """Of the rows of `mean`, before the first tile: logit of the target, derivative of the soft cap there, Σ e^(z - top), top."""
    state = mean.new_zeros(4, len(mean), 1)
    state[1], state[3] = 1.0, -torch.inf
    return state


def _fold(
    products: Tensor, places: Tensor, state: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Takes a tile into account.

    Args:
        products: hidden · weightᵀ of the tile, shape [rows, part]; is overwritten.
        places: of the targets in the tile, some outside of it, shape [rows, 1].
        state: as from `_beginning`, shape [4, rows, 1]; is updated.
        scale: of the logits.
        softcap: bound on them.

    Returns:
        e^(z - top) times the derivative of the soft cap, in the format of `products`, and by what to shrink sums of before.
    """
    if products.is_cuda:
        from iris_core.modeling.kernels import logprobs_triton

        return logprobs_triton.fold(products, places, state, scale, softcap)
    chosen, at_target, total, top = state
    logits, bend = _logits(products, scale, softcap)
    _take(chosen, logits, places)
    before = top.clone()
    torch.maximum(top, logits.amax(dim=-1, keepdim=True), out=top)
    shrink, spread = before.sub_(top).exp_(), logits.sub_(top).exp_()
    total.mul_(shrink).add_(spread.sum(dim=-1, keepdim=True))
    if bend is not None:
        _take(at_target, bend, places)
        spread.mul_(bend)
    return spread.to(products.dtype), shrink


def _by_logits(
    products: Tensor, places: Tensor, log_total: Tensor, outer: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """outer · (1 at the target − softmax) · derivative of the soft cap, in the format of `products`; shape [rows, part]."""
    if products.is_cuda:
        from iris_core.modeling.kernels import logprobs_triton

        return logprobs_triton.by_logits(products, places, log_total, outer, scale, softcap)
    logits, bend = _logits(products, scale, softcap)
    by_logits = logits.sub_(log_total).exp_().neg_()
    inside, column = _found(places, by_logits)
    by_logits.scatter_add_(1, column, inside.to(by_logits.dtype))
    return by_logits.mul_(outer if bend is None else outer * bend).to(products.dtype)


def _logits(products: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """fp32 logits of a tile, and the derivative of the soft cap where there is one; shape [rows, part]."""
    logits = products.float()
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is None:
        return logits, None
    bent = logits.div_(softcap).tanh_()
    return bent * softcap, 1 - bent.square()


def _take(into: Tensor, tile: Tensor, places: Tensor) -> None:
    """Copies the tile's values at the places inside of it; shape [rows, 1]."""
    inside, column = _found(places, tile)
    into.copy_(torch.where(inside, tile.gather(1, column), into))


def _found(places: Tensor, tile: Tensor) -> tuple[Tensor, Tensor]:
    """Which places lie in the tile, and columns that do; shape [rows, 1]."""
    return (places >= 0) & (places < tile.shape[1]), places.clamp(0, tile.shape[1] - 1)


def _rows(hidden: Tensor) -> Iterator[slice]:
    return _slices(len(hidden), _tile(hidden)[0])


def _parts(weight: Tensor) -> Iterator[slice]:
    return _slices(len(weight), _tile(weight)[1])


def _tile(like: Tensor) -> tuple[int, int]:
    return CPU_TILE if like.device.type == "cpu" else GPU_TILE


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))
