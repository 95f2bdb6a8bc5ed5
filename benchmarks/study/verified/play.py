"""Self-play of many runs of a method at once, with a verifier or without."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.study.language import log_likelihood, positions, sample
from benchmarks.study.network import RMSProp, Weights, rate_at
from benchmarks.study.selfplay import Runs, next_orders
from benchmarks.study.verified.losses import (
    OBJECTIVES_OF_STUDY,
    balanced_weights,
    from_first_difference,
    nearest_wrong,
    normalized,
)
from benchmarks.study.verified.measures import Measures, measure
from benchmarks.study.verified.methods import Method
from benchmarks.study.verified.regimes import MAX_NORM, World, table_of
from iris_core.config import SchedulePart
from iris_core.objectives.gap import variational_gap
from iris_core.objectives.losses import Parameters, Rewards, SampleWeights
from iris_core.objectives.normalizer import Normalizer

AT_ONCE = 32  # runs in one stack, few enough to fit into the CPU's cache
ADAPTIVE = SchedulePart(kind="adaptive", max_order=2.0, min_order=1.0)


class Opponent(NamedTuple):
    """What an epoch trains against. A row is a prompt: of an annotated pair, or an unannotated one.

    Attributes:
        annotated: the opponent's log p of annotated responses, shape [runs, pairs].
        where: positions of its own responses, shape [runs, rows, n, length].
        counts: 1 for their tokens that count, the same shape.
        samples: its log p of them, shape [runs, rows, n].
        weights: of them; None without a verifier.
    """

    annotated: Tensor
    where: Tensor
    counts: Tensor
    samples: Tensor
    weights: SampleWeights | None


def play(world: World, method: Method, runs: Runs) -> Measures:
    """Runs the method for all runs and measures each of their models.

    Args:
        world: the runs' world.
        method: what to run.
        runs: learning rates and seeds; `betas` are ρ for a method with a verifier.

    Returns:
        `measures.measure` of the initial model and after each iteration: shape [runs, iterations + 1, …].
    """
    parts = [_Game(world, method, part).play() for part in runs.split(AT_ONCE)]
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


class _Game:
    """The state of one stack of runs."""

    def __init__(self, world: World, method: Method, runs: Runs):
        self.world, self.method, self.runs, self.regime = world, method, runs, world.regime
        self.objective = OBJECTIVES_OF_STUDY[method.verified][method.objective]
        self.betas = torch.full_like(runs.betas, method.beta) if method.verified else runs.betas
        if not self.objective.scaled:
            self.betas = torch.ones_like(runs.betas)
        self.prompts = _prompts(world, method)[runs.seeds]
        self.annotated = world.train.where[runs.seeds]
        self.weights: Weights = {
            name: value[runs.seeds].clone().requires_grad_() for name, value in world.initial.items()
        }
        self.orders = torch.full_like(runs.betas, ADAPTIVE.max_order if method.adaptive else 1.0)
        self.gaps: list[Tensor] = []

    def play(self) -> Measures:
        """All iterations."""
        models = [self._measure()]
        for iteration in range(self.regime.iterations):
            self._iterate(iteration)
            models.append(self._measure())
        return {name: torch.stack([model[name] for model in models], dim=1) for name in models[0]}

    def _table(self) -> Tensor:
        with torch.no_grad():
            return table_of(self.weights, self.regime)

    def _measure(self) -> Measures:
        return measure(self.world, self._table(), self.runs.seeds)

    def _iterate(self, iteration: int) -> None:
        generator = torch.Generator().manual_seed(1000 + iteration)
        opponent = self._table()
        self._fine_tune(iteration, generator)
        if self.method.adaptive:
            self.gaps.append(self._gap(opponent, generator))
            self.orders = next_orders(ADAPTIVE, iteration, self.regime.iterations, self.orders, self.gaps)

    def _fine_tune(self, iteration: int, generator: torch.Generator) -> None:
        shuffle = torch.Generator().manual_seed(2000 + iteration)  # the same batches for all methods
        optimizer, normalizer = RMSProp(self.weights, MAX_NORM), Normalizer("anchored", self.orders)
        epochs, pairs = self.regime.epochs * self.method.budget, self.annotated.shape[1]
        steps, step = epochs * -(-pairs // self.regime.batch), 0
        opponent = self._opponent(generator)
        for epoch in range(epochs):
            if epoch and self.method.refreshed:
                opponent = self._opponent(generator)
            for rows in torch.randperm(pairs, generator=shuffle).split(self.regime.batch):
                loss = self._loss(rows, opponent, normalizer).sum()
                optimizer.step(loss, self.runs.learning_rates * rate_at(step, steps))
                step += 1

    def _opponent(self, generator: torch.Generator) -> Opponent:
        table = self._table()
        count = 0 if self.method.objective == "sft" else max(1, self.method.samples)
        where = self._answers(table, self.prompts.flatten(1), count, generator)
        counts, weights = torch.ones_like(where, dtype=torch.float32), None
        if self.method.verified:
            weights, counts = self._judge(where, generator)
        annotated = log_likelihood(table, self.annotated)
        return Opponent(annotated, where, counts, _counted(table, where, counts), weights)

    def _answers(self, table: Tensor, topics: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Positions of `count` responses to each prompt [runs, rows], from random numbers that runs of a seed share."""
        regime, repeated = self.regime, topics.repeat_interleave(count, dim=1)
        uniform = torch.rand(regime.seeds, repeated.shape[1], regime.length, generator=generator)
        responses = sample(table, repeated, uniform[self.runs.seeds])
        where = positions(repeated, responses, regime.topics, regime.tokens)
        return where.view(*topics.shape, count, regime.length)

    def _judge(self, where: Tensor, generator: torch.Generator) -> tuple[SampleWeights, Tensor]:
        """The weights of samples by the verifier, and 1 for their tokens that count."""
        method, rho = self.method, self.runs.betas.unsqueeze(-1)
        turned = torch.rand(self.regime.seeds, *where.shape[1:3], generator=generator) < method.noise
        right = (self.world.valid(where, self.runs.seeds) ^ turned[self.runs.seeds]).float()
        annotated = self._spread(torch.ones(self.annotated.shape[:2]))
        weights = balanced_weights(right, annotated, rho, method.baseline, method.strength)
        tokens = self._tokens_at(where)
        if method.normalized:
            weights = normalized(weights, rho)
        if method.negatives == "nearest":
            weights = nearest_wrong(weights, tokens)
        counts = torch.ones_like(tokens, dtype=torch.float32)
        if method.negatives in ("suffix", "first-token"):
            own = self._tokens_at(self.annotated).repeat_interleave(self.prompts.shape[2], dim=1)
            counts = from_first_difference(weights, tokens, own, method.negatives == "first-token")
        used = 1 - annotated.unsqueeze(-1) if method.prompts == "unannotated" else 1.0
        up = weights.up * used * float(method.positives)
        return weights._replace(up=up, down=weights.down * used), counts

    def _tokens_at(self, where: Tensor) -> Tensor:
        """The tokens at some positions."""
        return where // (self.regime.topics * (self.regime.tokens + 1) ** 2)

    def _spread(self, annotated: Tensor) -> Tensor:
        """Values of pairs [runs, pairs] as values of rows, 0 for unannotated prompts: shape [runs, rows]."""
        return pad(annotated.unsqueeze(-1), (0, self.prompts.shape[2] - 1)).flatten(1)

    def _loss(self, pairs: Tensor, opponent: Opponent, normalizer: Normalizer) -> Tensor:
        """The loss of a batch, shape [runs]."""
        table = table_of(self.weights, self.regime)
        groups = self.prompts.shape[2]
        rows = (pairs.unsqueeze(1) * groups + torch.arange(groups)).flatten()
        annotated = log_likelihood(table, self.annotated[:, pairs])
        samples = _counted(table, opponent.where[:, rows], opponent.counts[:, rows])
        if self.objective.relative:
            annotated = annotated - opponent.annotated[:, pairs]
            samples = samples - opponent.samples[:, rows]
        rewards = self._rewards(
            self._spread(self.betas * annotated), self.betas.unsqueeze(-1) * samples, opponent, rows
        )
        parameters = self._parameters(normalizer, rewards)
        loss = self.objective.loss(rewards, parameters).mean(-1)
        if self.method.objective != "sft":
            normalizer.update(rewards)
        return loss

    def _rewards(self, annotated: Tensor, samples: Tensor, opponent: Opponent, rows: Tensor) -> Rewards:
        if opponent.weights is None:
            return Rewards(annotated, samples[..., 0] if samples.shape[-1] else torch.zeros_like(annotated))
        return Rewards(annotated, samples, weights=SampleWeights(*(each[:, rows] for each in opponent.weights)))

    def _parameters(self, normalizer: Normalizer, rewards: Rewards) -> Parameters:
        log_normalizers = normalizer.log_values(rewards.annotated)
        parameters = Parameters.of(self.method.settings, self.orders)
        return replace(parameters, log_normalizers=log_normalizers, mean_tokens=self._tokens(rewards))

    def _tokens(self, rewards: Rewards) -> Tensor:
        """Tokens per row whose likelihood is raised, shape [runs, 1]."""
        of_row = 1.0 if rewards.weights is None else rewards.weights.annotated + rewards.weights.up.sum(-1)
        mean = torch.as_tensor(of_row).expand(rewards.annotated.shape).mean(-1, keepdim=True)
        return self.regime.length * mean

    def _gap(self, opponent: Tensor, generator: torch.Generator) -> Tensor:
        """The gap on validation pairs, shape [runs]."""
        held_out, policy = self.world.validation, self._table()
        answers = self._answers(opponent, held_out.topics[self.runs.seeds], 1, generator).squeeze(2)
        annotated, synthetic = (
            (log_likelihood(policy, where) - log_likelihood(opponent, where)).double().numpy()
            for where in (held_out.where[self.runs.seeds], answers)
        )
        return torch.from_numpy(variational_gap(annotated, synthetic))


def _prompts(world: World, method: Method) -> Tensor:
    """Prompts of all seeds that get samples, shape [seeds, pairs, groups]: those of pairs, then unannotated ones."""
    if method.prompts == "annotated":
        return world.train.topics.unsqueeze(-1)
    assert world.unannotated is not None, "the regime has no unannotated prompts"
    return torch.stack([world.train.topics, world.unannotated], dim=-1)


def _counted(table: Tensor, where: Tensor, counts: Tensor) -> Tensor:
    """log p of the tokens that count, shape [runs, rows, n]."""
    tokens = table.flatten(1).gather(1, where.flatten(1)).view(where.shape)
    return (tokens * counts).sum(-1)
