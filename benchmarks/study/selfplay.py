"""Self-play of many runs at once: five iterations of sampling the opponent and fine-tuning the policy against it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.study.language import divergence, log_likelihood, positions, sample
from benchmarks.study.losses import STUDY_OBJECTIVES
from benchmarks.study.network import RMSProp, Weights, rate_at, student_table
from benchmarks.study.world import World
from iris_core.config import ObjectivePart, SchedulePart
from iris_core.config.objective import NormalizerName
from iris_core.objectives.gap import variational_gap
from iris_core.objectives.losses import (
    Parameters,
    Rewards,
    effective_sample_size,
    gradient_coefficients,
)
from iris_core.objectives.normalizer import Normalizer
from iris_core.objectives.order import next_order

AT_ONCE = 32  # runs in one stack, few enough to fit into the CPU's cache


@dataclass(frozen=True)
class Variant:
    """One way to fine-tune.

    Attributes:
        name: unique, shown in tables.
        objective: name in `STUDY_OBJECTIVES`.
        normalizer: of IRIS's weights.
        schedule: of the order α.
        clip: largest weight.
        likelihood_weight: λ of the annotated log-likelihood term.
        all_pairs: train on all annotated pairs, not on 13 % of them.
    """

    name: str
    objective: str = "iris"
    normalizer: NormalizerName = "unit"
    schedule: SchedulePart = field(default_factory=SchedulePart)
    clip: float = 5.0
    likelihood_weight: float = 0.0
    all_pairs: bool = False


@dataclass(frozen=True)
class Runs:
    """A stack of runs of one variant.

    Attributes:
        learning_rates: shape [runs].
        betas: reward scales, shape [runs, 1].
        seeds: index of teacher, data and initial student, shape [runs].
    """

    learning_rates: Tensor
    betas: Tensor
    seeds: Tensor

    @staticmethod
    def of(cells: list[tuple[float, float]], seeds: int) -> Runs:
        """Each (learning rate, β) with each seed; seeds vary fastest."""
        rates, betas = torch.tensor(cells).repeat_interleave(seeds, dim=0).unbind(1)
        return Runs(rates, betas.unsqueeze(1), torch.arange(seeds).repeat(len(cells)))

    def split(self, size: int) -> list[Runs]:
        """Stacks of at most `size` runs."""
        parts = (x.split(size) for x in (self.learning_rates, self.betas, self.seeds))
        return [Runs(*part) for part in zip(*parts, strict=True)]


Measures = dict[str, Tensor]


def play(world: World, variant: Variant, runs: Runs) -> Measures:
    """Runs self-play for all runs and measures each of their models.

    Returns:
        `forward` KL(p_data‖p_θ), `reverse` KL(p_θ‖p_data) and `validation` log-likelihood, nats per response, each of
        shape [runs, iterations + 1], the initial model first; and `order`, `gap` and the effective shares
        `annotated_share` and `synthetic_share` of the pairs at the end of each iteration, shape [runs, iterations].
    """
    parts = [_Game(world, variant, part).play() for part in runs.split(AT_ONCE)]
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


class _Game:
    """The state of one stack of runs."""

    def __init__(self, world: World, variant: Variant, runs: Runs):
        self.world, self.variant, self.runs = world, variant, runs
        self.setting = world.setting
        self.objective = STUDY_OBJECTIVES[variant.objective]
        count = self.setting.all_pairs if variant.all_pairs else self.setting.pairs
        train = world.annotated.first(count)
        self.topics, self.annotated = train.topics[runs.seeds], train.where[runs.seeds]
        self.held_topics = world.validation.topics[runs.seeds]
        self.held_out = world.validation.where[runs.seeds]
        self.weights: Weights = {
            name: value[runs.seeds].clone().requires_grad_() for name, value in world.initial.items()
        }
        self.orders = torch.full((len(runs.seeds), 1), variant.schedule.max_order)
        self.gaps: list[Tensor] = []
        self.initial: Tensor | None = None

    def play(self) -> Measures:
        """All iterations."""
        models, rounds = [self._measure_model()], []
        for iteration in range(self.setting.iterations):
            rounds.append(self._iterate(iteration))
            models.append(self._measure_model())
        return {
            name: torch.stack([step[name] for step in steps], dim=1) for steps in (models, rounds) for name in steps[0]
        }

    def _table(self) -> Tensor:
        with torch.no_grad():
            return student_table(self.weights)

    def _measure_model(self) -> Measures:
        teacher, table = self.world.teacher[self.runs.seeds], self._table()
        return {
            "forward": divergence(teacher, table, self.setting.length),
            "reverse": divergence(table, teacher, self.setting.length),
            "validation": log_likelihood(table, self.held_out).mean(-1),
        }

    def _iterate(self, iteration: int) -> Measures:
        opponent = self._table()
        generator = torch.Generator().manual_seed(1000 + iteration)
        synthetic = self._answers(opponent, self.topics, generator)
        held_synthetic = self._answers(opponent, self.held_topics, generator)
        self._fine_tune(opponent, synthetic, generator)
        if iteration == 0:
            self.initial = synthetic

        policy = self._table()
        rewards = self._rewards(policy, opponent, self.annotated, synthetic, None)
        up, down = gradient_coefficients(self.objective, rewards, self._parameters((0.0, 0.0)))
        annotated, held = (
            log_likelihood(policy, where) - log_likelihood(opponent, where) for where in (self.held_out, held_synthetic)
        )
        gap = torch.from_numpy(variational_gap(annotated.double().numpy(), held.double().numpy()))
        self.gaps.append(gap)
        measures = {
            "order": self.orders.squeeze(1),
            "gap": gap,
            "annotated_share": effective_sample_size(up.abs()) / up.shape[1],
            "synthetic_share": effective_sample_size(down.abs()) / down.shape[1],
        }
        self.orders = next_orders(self.variant.schedule, iteration, self.setting.iterations, self.orders, self.gaps)
        return measures

    def _answers(self, opponent: Tensor, topics: Tensor, generator: torch.Generator) -> Tensor:
        """Positions of one response of the opponent to each prompt, from random numbers that runs of a seed share."""
        shape = (self.setting.seeds, topics.shape[1], self.setting.length)
        uniform = torch.rand(shape, generator=generator)[self.runs.seeds]
        responses = sample(opponent, topics, uniform)
        return positions(topics, responses, self.setting.topics, self.setting.tokens)

    def _fine_tune(self, opponent: Tensor, synthetic: Tensor, generator: torch.Generator) -> None:
        setting, count = self.setting, self.annotated.shape[1]
        optimizer = RMSProp(self.weights, setting.max_norm)
        normalizer = Normalizer(self.variant.normalizer, self.orders)
        batches = [
            rows
            for _ in range(setting.epochs)
            for rows in torch.randperm(count, generator=generator).split(setting.batch)
        ]
        for step, rows in enumerate(batches):
            table = student_table(self.weights)
            initial = None if self.initial is None else self.initial[:, rows]
            rewards = self._rewards(table, opponent, self.annotated[:, rows], synthetic[:, rows], initial)
            if normalizer.needs_whole_batch:
                normalizer.update(rewards)
            parameters = self._parameters(normalizer.log_values(rewards.annotated))
            loss = self.objective.loss(rewards, parameters).mean(-1).sum()
            optimizer.step(loss, self.runs.learning_rates * rate_at(step, len(batches)))
            if not normalizer.needs_whole_batch:
                normalizer.update(rewards)

    def _rewards(
        self, policy: Tensor, opponent: Tensor, annotated: Tensor, synthetic: Tensor, initial: Tensor | None
    ) -> Rewards:
        """Rewards of the responses that the objective uses, at the given positions."""

        def reward(where: Tensor) -> Tensor:
            value = log_likelihood(policy, where)
            if self.objective.relative:
                value = value - log_likelihood(opponent, where)
            return self.runs.betas * value

        responses = self.objective.responses
        of_annotated = reward(annotated)
        of_synthetic = reward(synthetic) if responses > 1 else torch.zeros_like(of_annotated)
        of_initial = reward(initial) if responses > 2 and initial is not None else None
        return Rewards(of_annotated, of_synthetic, of_initial)

    def _parameters(self, log_normalizers: tuple[float | Tensor, float | Tensor]) -> Parameters:
        return replace(
            Parameters.of(ObjectivePart(), self.orders),
            log_normalizers=log_normalizers,
            clip=self.variant.clip,
            likelihood_weight=self.variant.likelihood_weight,
            mean_tokens=self.setting.length,
        )


def next_orders(schedule: SchedulePart, iteration: int, iterations: int, orders: Tensor, gaps: list[Tensor]) -> Tensor:
    """The order α of every run in the next iteration.

    Args:
        schedule: rule and bounds.
        iteration: the iteration that has ended.
        iterations: how many there are.
        orders: of that iteration, shape [runs, 1].
        gaps: of all iterations so far, each of shape [runs].
    """
    history = torch.stack(gaps, dim=1).clamp(min=0.0).tolist()
    following = [
        next_order(schedule, iteration, iterations, order, run)[0]
        for order, run in zip(orders.squeeze(1).tolist(), history, strict=True)
    ]
    return torch.tensor(following, dtype=torch.float32).unsqueeze(1)
