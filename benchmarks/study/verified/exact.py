"""Exact quantities of whole responses by dynamic programming over contexts, from tables of `language`."""

from __future__ import annotations

import torch
from torch import Tensor


def walk(step: Tensor, start: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Visits of every context, and the mass that is left at the end.

    Args:
        step: weight of every next token, shape [runs, tokens, topics, tokens + 1, tokens + 1]. With probabilities no
            mass is lost; with those of impossible tokens set to 0, the mass left is the probability of none of them.
        start: probability of every topic, shape [runs, topics].
        length: tokens of a response.

    Returns:
        Expected visits summed over positions, shape [runs, topics, tokens + 1, tokens + 1], and the mass, shape [runs].
    """
    by_first = step.permute(0, 2, 4, 1, 3).contiguous()  # [runs, topics, last, next, token before the last]
    runs, topics, contexts = by_first.shape[:3]
    current = torch.zeros(runs, topics, contexts, contexts)
    current[:, :, -1, -1] = start
    total = torch.zeros_like(current)
    for _ in range(length):
        total += current
        following = (by_first @ current.transpose(2, 3).unsqueeze(-1)).squeeze(-1)
        current = torch.nn.functional.pad(following, (0, 1))
    return total, current.sum((1, 2, 3)).double()


def over(visits: Tensor, local: Tensor) -> Tensor:
    """Sum of a context's local value over its visits: shape [runs]."""
    return (visits * local).double().sum((1, 2, 3))


def divergence(visits: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) of whole responses in nats from p's visits and both tables: shape [runs]."""
    return over(visits, (p.exp() * (p - q)).sum(1))


def entropy(visits: Tensor, p: Tensor) -> Tensor:
    """Entropy of whole responses in nats from p's visits and table: shape [runs]."""
    return over(visits, -(p.exp() * p).sum(1))


def validity(p: Tensor, possible: Tensor, start: Tensor, length: int) -> Tensor:
    """Probability of a response without an impossible token: shape [runs].

    Args:
        p: table.
        possible: 1 for possible tokens, 0 for impossible ones, in the shape of the table.
        start: probability of every topic, shape [runs, topics].
        length: tokens of a response.
    """
    return walk(p.exp() * possible, start, length)[1]
