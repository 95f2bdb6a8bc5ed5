"""Stacks of small networks, one per run, that give tables of `language`, and RMSProp over such stacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]
SMOOTHING, EPSILON = 0.99, 1e-8  # defaults of torch.optim.RMSprop


def random_students(generator: torch.Generator, seeds: int, topics: int, tokens: int, hidden: int) -> Weights:
    """Initial weights of `seeds` students: a sum of embeddings of topic and both tokens, tanh, a linear layer."""

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(seeds, *shape, generator=generator)

    return {
        "topic": normal(hidden, topics, scale=0.5),
        "second": normal(hidden, tokens + 1, scale=0.5),
        "first": normal(hidden, tokens + 1, scale=0.5),
        "output": normal(tokens, hidden, scale=0.5 / math.sqrt(hidden)),
        "bias": torch.zeros(seeds, tokens, 1),
    }


def student_table(weights: Weights) -> Tensor:
    """Log-probabilities, shape [runs, tokens, topics, tokens + 1, tokens + 1]."""
    contexts = _added_embeddings(weights)
    features = contexts.tanh().flatten(2)
    logits = torch.baddbmm(weights["bias"], weights["output"], features)
    return logits.log_softmax(1).unflatten(2, contexts.shape[2:])


def _added_embeddings(weights: Weights) -> Tensor:
    pairs = weights["second"][:, :, :, None] + weights["first"][:, :, None, :]
    return weights["topic"][..., None, None] + pairs.unsqueeze(2)


def random_logits(generator: torch.Generator, embeddings: Weights) -> Tensor:
    """Logits of fixed random networks with two hidden layers on the given embeddings, with a standard deviation of 1.

    Args:
        generator: source of the layers' random numbers.
        embeddings: as `random_students` gives them; both layers have their width.

    Returns:
        Shape [networks, tokens, topics, tokens + 1, tokens + 1].
    """
    networks, hidden, contexts = embeddings["first"].shape
    summed = _added_embeddings(embeddings)
    lower = (1.5 * summed).tanh().flatten(2)
    middle = torch.randn(networks, hidden, hidden, generator=generator) / math.sqrt(hidden)
    output = torch.randn(networks, contexts - 1, hidden, generator=generator)
    logits = output @ (2 * middle @ lower).tanh()
    return (logits / logits.std()).unflatten(2, summed.shape[2:])


def random_teachers(
    generator: torch.Generator, seeds: int, topics: int, tokens: int, hidden: int, sharpness: float
) -> Tensor:
    """Tables of `seeds` fixed random networks with two hidden layers, which a student can nearly express.

    Args:
        generator: source of all random numbers.
        seeds: number of teachers.
        topics: number of prompts.
        tokens: size of the vocabulary.
        hidden: width of both layers.
        sharpness: standard deviation of the logits.
    """
    embeddings = random_students(generator, seeds, topics, tokens, hidden)
    return (sharpness * random_logits(generator, embeddings)).log_softmax(1)


class RMSProp:
    """torch.optim.RMSprop for stacked runs, each with its own learning rate and gradient norm."""

    def __init__(self, weights: Weights, max_norm: float):
        self.weights, self.max_norm = weights, max_norm
        self.squares = {name: torch.zeros_like(value) for name, value in weights.items()}

    @torch.no_grad()
    def step(self, loss: Tensor, learning_rates: Tensor) -> None:
        """One step on `loss`, the sum of the runs' losses, with `learning_rates` [runs]."""
        names = list(self.weights)
        gradients = dict(zip(names, torch.autograd.grad(loss, list(self.weights.values())), strict=True))
        norm = sum(g.square().sum((1, 2)) for g in gradients.values()).sqrt()
        shrink = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)[:, None, None]
        rates = learning_rates[:, None, None]
        for name, gradient in gradients.items():
            clipped = gradient * shrink
            square = self.squares[name].mul_(SMOOTHING).addcmul_(clipped, clipped, value=1 - SMOOTHING)
            self.weights[name] -= rates * clipped / (square.sqrt() + EPSILON)


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: up from 0 over 10 % of the steps, then down to 0 (transformers' `linear`)."""
    warmup = int(0.1 * steps)
    return step / warmup if step < warmup else (steps - step) / (steps - warmup)
