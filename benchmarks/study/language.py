"""Language models as tables: next-token log-probabilities given the topic (the prompt) and the two tokens before.

A table has the shape [runs, tokens, topics, tokens + 1, tokens + 1]: the next token, the topic, the token before the
last and the last one. Index `tokens` means "before the first token". All responses have the same length, and all topics
the same probability, so that divergences are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions(topics: Tensor, responses: Tensor, topic_count: int, tokens: int) -> Tensor:
    """Indices of each token's log-probability in a flattened table.

    Args:
        topics: shape [runs, pairs].
        responses: shape [runs, pairs, length].
        topic_count: number of topics.
        tokens: size of the vocabulary.

    Returns:
        Indices in the shape of the responses.
    """
    start = torch.full_like(responses[..., :2], tokens)
    before = torch.cat([start, responses[..., :-1]], dim=-1)
    rows = _context(topics.unsqueeze(-1), before[..., :-1], before[..., 1:], tokens)
    return responses * topic_count * (tokens + 1) ** 2 + rows


def _context(topic: Tensor, second: Tensor, first: Tensor, tokens: int) -> Tensor:
    return (topic * (tokens + 1) + second) * (tokens + 1) + first


def log_likelihood(table: Tensor, where: Tensor) -> Tensor:
    """log p(y|x) in nats of the responses at `where` [runs, pairs, length]: shape [runs, pairs]."""
    flat = table.flatten(1).gather(1, where.flatten(1))
    return flat.view(where.shape).sum(-1)


def sample(table: Tensor, topics: Tensor, uniform: Tensor) -> Tensor:
    """One response per prompt by inverting the cumulative distribution at uniform numbers.

    Args:
        table: shape [runs, tokens, topics, tokens + 1, tokens + 1].
        topics: shape [runs, pairs].
        uniform: shape [runs, pairs, length]; the same numbers for two tables couple their samples.

    Returns:
        Tokens, shape [runs, pairs, length].
    """
    tokens = table.shape[1]
    cumulative = table.exp().cumsum(1).flatten(2)
    second = first = torch.full_like(topics, tokens)
    sampled = []
    for draw in uniform.unbind(-1):
        rows = _context(topics, second, first, tokens).unsqueeze(1)
        steps = cumulative.gather(2, rows.expand(-1, tokens, -1))
        second, first = first, (draw.unsqueeze(1) > steps).sum(1).clamp(max=tokens - 1)
        sampled.append(first)
    return torch.stack(sampled, dim=-1)


def divergence(p: Tensor, q: Tensor, length: int) -> Tensor:
    """KL(p‖q) of whole responses in nats, exactly: a sum over positions and contexts, weighted by p's visits.

    Args:
        p: table, shape [runs, tokens, topics, tokens + 1, tokens + 1].
        q: the same.
        length: tokens per response.

    Returns:
        Shape [runs].
    """
    p, q = p.double(), q.double()
    probabilities = p.exp()
    local = (probabilities * (p - q)).sum(1)
    visits = torch.zeros_like(local)
    visits[:, :, -1, -1] = 1 / local.shape[1]
    total = torch.zeros(len(p), dtype=torch.float64)
    for _ in range(length):
        total += (visits * local).sum((1, 2, 3))
        following = torch.einsum("rkab,rckab->rkbc", visits, probabilities)
        visits = torch.nn.functional.pad(following, (0, 1))
    return total
