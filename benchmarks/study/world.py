"""What all runs of the study share: teachers (p_data), data sets and the initial students.

One teacher per seed; all comparisons are paired by seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.study.language import log_likelihood, positions, sample
from benchmarks.study.network import (
    RMSProp,
    Weights,
    random_students,
    random_teachers,
    student_table,
)


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        seeds: teachers, each with its own data and student.
        topics: prompts, equally likely.
        tokens: size of the vocabulary.
        length: tokens of every response.
        hidden: width of the student.
        teacher_hidden: width of the teacher's two layers.
        sharpness: standard deviation of the teacher's logits.
        pairs: annotated pairs to learn from, 13 % of `all_pairs`.
        all_pairs: annotated pairs if all prompts were annotated (panel a).
        validation: annotated pairs for the choice of cells and iterations, and for the gap.
        iterations: rounds of self-play.
        epochs: passes over the pairs in one iteration.
        batch: pairs per optimiser step.
        max_norm: largest gradient norm.
        warm_rate: learning rate of the supervised fine-tuning before self-play.
        warm_epochs: its maximum duration.
        warm_share: it stops when the validation likelihood has gained this share of its largest gain.
    """

    seeds: int = 8
    topics: int = 8
    tokens: int = 12
    length: int = 12
    hidden: int = 32
    teacher_hidden: int = 32
    sharpness: float = 1.5
    pairs: int = 1024
    all_pairs: int = 7877
    validation: int = 512
    iterations: int = 5
    epochs: int = 2
    batch: int = 64
    max_norm: float = 1.0
    warm_rate: float = 1e-3
    warm_epochs: int = 60
    warm_share: float = 0.8


@dataclass(frozen=True)
class Pairs:
    """Prompts with annotated responses.

    Attributes:
        topics: shape [seeds, pairs].
        where: positions of the annotated tokens, shape [seeds, pairs, length].
    """

    topics: Tensor
    where: Tensor

    def first(self, count: int) -> Pairs:
        """The first `count` pairs of each seed."""
        return Pairs(self.topics[:, :count], self.where[:, :count])


@dataclass(frozen=True)
class World:
    """Teachers, data and initial students.

    Attributes:
        setting: sizes.
        teacher: p_data, a table.
        annotated: all annotated pairs; runs train on the first `setting.pairs` of them.
        validation: independent annotated pairs.
        initial: weights of the initial students, stacked over seeds.
    """

    setting: Setting
    teacher: Tensor
    annotated: Pairs
    validation: Pairs
    initial: Weights


@lru_cache(maxsize=1)
def build_world(setting: Setting) -> World:
    """The world of a setting, the same on every call."""
    generator = torch.Generator().manual_seed(20260)
    teacher = random_teachers(
        generator, setting.seeds, setting.topics, setting.tokens, setting.teacher_hidden, setting.sharpness
    )
    annotated = _draw(teacher, setting.all_pairs, setting, generator)
    validation = _draw(teacher, setting.validation, setting, generator)
    fresh = random_students(generator, setting.seeds, setting.topics, setting.tokens, setting.hidden)
    initial = _warm_up(fresh, annotated.first(setting.pairs), validation, setting)
    return World(setting, teacher, annotated, validation, initial)


def _draw(teacher: Tensor, count: int, setting: Setting, generator: torch.Generator) -> Pairs:
    topics = torch.randint(setting.topics, (setting.seeds, count), generator=generator)
    uniform = torch.rand(setting.seeds, count, setting.length, generator=generator)
    responses = sample(teacher, topics, uniform)
    return Pairs(topics, positions(topics, responses, setting.topics, setting.tokens))


def _warm_up(fresh: Weights, train: Pairs, validation: Pairs, setting: Setting) -> Weights:
    """Supervised fine-tuning, stopped early for each seed by `warm_share`."""
    weights = {name: value.clone().requires_grad_() for name, value in fresh.items()}
    optimizer = RMSProp(weights, setting.max_norm)
    rates = torch.full((setting.seeds,), setting.warm_rate)
    path, scores = [fresh], [log_likelihood(student_table(fresh), validation.where).mean(-1)]
    for _ in range(setting.warm_epochs):
        for where in train.where.split(setting.batch, dim=1):
            optimizer.step(-log_likelihood(student_table(weights), where).mean(-1).sum(), rates)
        path.append({name: value.detach().clone() for name, value in weights.items()})
        scores.append(log_likelihood(student_table(path[-1]), validation.where).mean(-1))
    score = torch.stack(scores)
    goal = score[0] + setting.warm_share * (score.amax(0) - score[0])
    stops = (score >= goal).int().argmax(0)
    return {name: torch.stack([path[stop][name][seed] for seed, stop in enumerate(stops.tolist())]) for name in fresh}
