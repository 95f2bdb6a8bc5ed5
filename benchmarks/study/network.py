"""Stacks of small networks, one per run, whose outputs are tables of `language`; and RMSProp over such stacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]
SMOOTHING, EPSILON = 0.99, 1e-8  # torch.optim.RMSprop's own


def random_students(
    generator: torch.Generator, seeds: int, topics: int, tokens: int, hidden: int
) -> Weights:
    """Fresh weights of `seeds` students: embeddings of topic and both tokens added up, tanh, a linear layer."""

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(seeds, *shape, generator=generator)

    return {
        "topic": normal(topics, hidden, scale=0.5),
        "second": normal(tokens + 1, hidden, scale=0.5),
        "first": normal(tokens + 1, hidden, scale=0.5),
        "output": normal(hidden, tokens, scale=0.5 / math.sqrt(hidden)),
        "bias": torch.zeros(seeds, 1, tokens),
    }


def student_table(weights: Weights) -> Tensor:
    """Log-probabilities, shape [runs, topics, tokens + 1, tokens + 1, tokens]."""
    topic, second, first = weights["topic"], weights["second"], weights["first"]
    pairs = second[:, None, :, None] + first[:, None, None, :]
    features = (topic[:, :, None, None] + pairs).tanh()
    logits = torch.baddbmm(weights["bias"], features.flatten(1, 3), weights["output"])
    return logits.log_softmax(-1).view(*features.shape[:-1], -1)


def random_teachers(
    generator: torch.Generator, seeds: int, topics: int, tokens: int, hidden: int, sharpness: float
) -> Tensor:
    """Tables of `seeds` fixed random networks with two hidden layers: close to what a student can express, not within it.

    Args:
        generator: decides everything.
        seeds: how many teachers.
        topics: how many prompts there are.
        tokens: size of the vocabulary.
        hidden: width of both layers.
        sharpness: standard deviation of the logits.
    """
    shape = (seeds, topics, tokens + 1, tokens + 1)
    wide = random_students(generator, seeds, topics, tokens, hidden)
    features = (
        (
            wide["topic"][:, :, None, None]
            + wide["second"][:, None, :, None]
            + wide["first"][:, None, None, :]
        )
        .mul(1.5)
        .tanh()
        .flatten(1, 3)
    )
    middle = torch.randn(seeds, hidden, hidden, generator=generator) / math.sqrt(hidden)
    output = torch.randn(seeds, hidden, tokens, generator=generator)
    logits = (2 * features @ middle).tanh() @ output
    return (sharpness * logits / logits.std()).log_softmax(-1).view(*shape, tokens)


class RMSProp:
    """torch.optim.RMSprop for stacked runs, each with its own learning rate and its own gradient norm."""

    def __init__(self, weights: Weights, max_norm: float):
        self.weights, self.max_norm = weights, max_norm
        self.squares = {name: torch.zeros_like(value) for name, value in weights.items()}

    @torch.no_grad()
    def step(self, loss: Tensor, learning_rates: Tensor) -> None:
        """Descends `loss`, the sum of the runs' losses, with `learning_rates` [runs]."""
        names = list(self.weights)
        gradients = dict(
            zip(names, torch.autograd.grad(loss, list(self.weights.values())), strict=True)
        )
        norm = sum(g.square().sum((1, 2)) for g in gradients.values()).sqrt()
        shrink = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)[:, None, None]
        rates = learning_rates[:, None, None]
        for name, gradient in gradients.items():
            clipped = gradient * shrink
            square = (
                self.squares[name].mul_(SMOOTHING).addcmul_(clipped, clipped, value=1 - SMOOTHING)
            )
            self.weights[name] -= rates * clipped / (square.sqrt() + EPSILON)


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: 10 % of the steps rising from 0, then falling to 0 (as transformers' `linear`)."""
    warmup = int(0.1 * steps)
    return step / warmup if step < warmup else (steps - step) / (steps - warmup)
