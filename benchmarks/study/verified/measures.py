"""What is measured of every model in panel c."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.study.language import log_likelihood, positions, sample
from benchmarks.study.verified import exact
from benchmarks.study.verified.regimes import Probe, World

TEMPERATURES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)

Measures = dict[str, Tensor]


def measure(world: World, table: Tensor, seeds: Tensor) -> Measures:
    """The measures of a stack of models.

    Args:
        world: the runs' world.
        table: of the models, shape [runs, …].
        seeds: of the runs, shape [runs].

    Returns:
        On test prompts `forward` KL(p_data‖p_θ), and for each of `TEMPERATURES` [runs, temperatures] `reverse`
        KL(p_θ‖p_data), `validity` and `entropy`, exactly; `greedy`, the validity of greedy responses; and `scores`, the
        log p_data of sampled responses [runs, prompts]. On validation prompts `validation`, the log-likelihood, and
        `sampled_validity`. KL, entropy and log-likelihood are nats per response.
    """
    teacher, possible = world.teacher[seeds], world.possible[seeds].float()
    found = [_at(world, (table / t).log_softmax(1), seeds, possible) for t in TEMPERATURES]
    return {
        "forward": exact.divergence(world.visits[seeds], teacher, table),
        **{name: torch.stack([at[name] for at in found], dim=1) for name in found[0]},
        "greedy": exact.validity(_greedy(table), possible, world.start[seeds], world.regime.length),
        "scores": log_likelihood(teacher, _responses(world, world.test_probe, table, seeds)),
        "validation": log_likelihood(table, world.validation.where[seeds]).mean(-1),
        "sampled_validity": world.valid(_responses(world, world.validation_probe, table, seeds), seeds)
        .float()
        .mean(-1),
    }


def _at(world: World, table: Tensor, seeds: Tensor, possible: Tensor) -> Measures:
    start, length = world.start[seeds], world.regime.length
    visits, _ = exact.walk(table.exp(), start, length)
    return {
        "reverse": exact.divergence(visits, table, world.teacher[seeds]),
        "validity": exact.validity(table, possible, start, length),
        "entropy": exact.entropy(visits, table),
    }


def _greedy(table: Tensor) -> Tensor:
    """The table that gives all probability to the most probable token."""
    best = torch.nn.functional.one_hot(table.argmax(1), table.shape[1]).movedim(-1, 1)
    return best.to(table).log()


def _responses(world: World, probe: Probe, table: Tensor, seeds: Tensor) -> Tensor:
    topics = probe.topics[seeds]
    return positions(topics, sample(table, topics, probe.uniform[seeds]), world.regime.topics, world.regime.tokens)
