"""The two regimes of panel c, and what their runs share: teachers with a grammar, prompts, data, converged students.

In every context the teacher gives all but a negligible mass to a few tokens; the others are impossible. A response is
valid if it has no impossible token. That is what the verifier knows, and a small student cannot quite learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.study.language import log_likelihood, positions, sample
from benchmarks.study.network import RMSProp, Weights, random_logits, random_students, student_table
from benchmarks.study.verified import exact
from benchmarks.study.world import Pairs

TEACHER_HIDDEN, SHARPNESS = 32, 1.5  # width of the teacher's layers, standard deviation of its logits
LEAK = 1e-5  # mass of the impossible tokens in every context, so that divergences stay finite
STUDENT_SCALE = 0.5  # of the embeddings in `network.random_students`
MAX_NORM = 1.0  # largest gradient norm
WARM_RATE, WARM_EPOCHS = 1e-2, 100  # supervised fine-tuning before self-play
PROBES = 512  # responses that the verifier judges to choose cells, and on which two models compete


@dataclass(frozen=True)
class Split:
    """How many prompts are annotated, not annotated, for validation, and for the test."""

    annotated: int
    unannotated: int
    validation: int
    test: int


@dataclass(frozen=True)
class Regime:
    """Sizes of a regime.

    Attributes:
        name: shown in tables.
        tokens: size of the vocabulary.
        allowed: possible tokens in every context.
        hidden: width of the student.
        pairs: annotated pairs.
        batch: annotated pairs per optimiser step.
        epochs: passes over the pairs in one iteration.
        factors: prompts are pairs of two words, each one of so many; 0: `topics` unrelated prompts.
        topics: number of prompts.
        split: of the prompts; None: all prompts are annotated, and all are tested.
        topic_scale: standard deviation of the teacher's embeddings of prompts.
        length: tokens of every response.
        validation: annotated pairs for the choice of cells and iterations.
        iterations: rounds of self-play.
        seeds: worlds, each with its own teacher, data and student.
        draw: worlds of another draw are other worlds.
    """

    name: str
    tokens: int
    allowed: int
    hidden: int
    pairs: int
    batch: int
    epochs: int
    factors: int = 0
    topics: int = 8
    split: Split | None = None
    topic_scale: float = 0.5
    length: int = 8
    validation: int = 256
    iterations: int = 4
    seeds: int = 4
    draw: int = 1


H8 = Regime("h8", tokens=12, allowed=6, hidden=8, pairs=512, batch=64, epochs=2)
COMP = Regime(
    "comp",
    tokens=6,
    allowed=3,
    hidden=16,
    pairs=256,
    batch=32,
    epochs=3,
    factors=8,
    topics=64,
    split=Split(12, 30, 8, 14),
    topic_scale=0.25,
)


@dataclass(frozen=True)
class Probe:
    """Prompts and the random numbers of one response to each, the same for all models of a seed.

    Attributes:
        topics: shape [seeds, prompts].
        uniform: shape [seeds, prompts, length].
    """

    topics: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class World:
    """What the runs of a regime share.

    Attributes:
        regime: sizes.
        teacher: p_data, a table.
        possible: whether a token is possible, bool in the shape of the table.
        train: annotated pairs.
        unannotated: a prompt without annotation beside every annotated pair, shape [seeds, pairs]; None without any.
        validation: annotated pairs of validation prompts.
        start: probability of every prompt in the test, shape [seeds, topics].
        visits: the teacher's in the test (`exact.walk`).
        validation_probe: what the verifier judges to choose cells and iterations.
        test_probe: what two models compete on.
        initial: weights of the converged students, stacked over seeds.
    """

    regime: Regime
    teacher: Tensor
    possible: Tensor
    train: Pairs
    unannotated: Tensor | None
    validation: Pairs
    start: Tensor
    visits: Tensor
    validation_probe: Probe
    test_probe: Probe
    initial: Weights

    def valid(self, where: Tensor, seeds: Tensor) -> Tensor:
        """Whether responses at the positions `where` [runs, …, length] have no impossible token: shape [runs, …]."""
        possible = self.possible.flatten(1)[seeds].gather(1, where.flatten(1))
        return possible.view(where.shape).all(-1)


def table_of(weights: Weights, regime: Regime) -> Tensor:
    """Log-probabilities of students, a table of `language`."""
    return student_table(_with_prompts(weights, regime.factors))


def _with_prompts(weights: Weights, factors: int) -> Weights:
    """Embeddings of prompts of two words, the sums of the words' embeddings."""
    if not factors:
        return weights
    words = weights["topic"]
    prompts = words[:, :, :factors, None] + words[:, :, None, factors:]
    return {**weights, "topic": prompts.flatten(2)}


@lru_cache(maxsize=1)
def build_world(regime: Regime) -> World:
    """The world of a regime, the same on every call."""
    generator = torch.Generator().manual_seed(91000 + regime.draw)
    teacher, possible = _teachers(regime, generator)
    order = torch.stack([torch.randperm(regime.topics, generator=generator) for _ in range(regime.seeds)])
    annotated, unannotated, validation, test = _parts(order, regime)
    train = _annotate(teacher, _draw(annotated, regime.pairs, generator), regime, generator)
    held_out = _annotate(teacher, _draw(validation, regime.validation, generator), regime, generator)
    others = _draw(unannotated, regime.pairs, generator) if unannotated.shape[1] else None
    to_validate, to_test = (_probe(prompts, regime, generator) for prompts in (validation, test))
    start = torch.zeros(regime.seeds, regime.topics).scatter(1, test, 1 / test.shape[1])
    visits = exact.walk(teacher.exp(), start, regime.length)[0]
    fresh = _students(regime, regime.hidden, STUDENT_SCALE, generator)
    initial = _converge(fresh, train, held_out, regime)
    return World(regime, teacher, possible, train, others, held_out, start, visits, to_validate, to_test, initial)


def _teachers(regime: Regime, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tables, and which tokens are possible: those that another random network ranks first in a context."""
    preferred, ranked = (
        random_logits(generator, _with_prompts(embeddings, regime.factors))
        for embeddings in (
            _students(regime, TEACHER_HIDDEN, regime.topic_scale, generator),
            _students(regime, TEACHER_HIDDEN, regime.topic_scale, generator),
        )
    )
    possible = ranked >= ranked.topk(regime.allowed, dim=1).values[:, -1:]
    grammatical = (SHARPNESS * preferred).masked_fill(~possible, -math.inf).softmax(1)
    leaked = LEAK / (regime.tokens - regime.allowed)
    return torch.where(possible, (1 - LEAK) * grammatical, leaked).log(), possible


def _students(regime: Regime, hidden: int, topic_scale: float, generator: torch.Generator) -> Weights:
    words = 2 * regime.factors or regime.topics
    weights = random_students(generator, regime.seeds, words, regime.tokens, hidden)
    return {**weights, "topic": weights["topic"] * (topic_scale / STUDENT_SCALE)}


def _parts(order: Tensor, regime: Regime) -> tuple[Tensor, ...]:
    """Prompts [seeds, count] that are annotated, not annotated, for validation, and for the test."""
    if regime.split is None:
        return order, order[:, :0], order, order
    split = regime.split
    return order.split([split.annotated, split.unannotated, split.validation, split.test], dim=1)


def _draw(prompts: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Prompts drawn with replacement, shape [seeds, count]."""
    return prompts.gather(1, torch.randint(prompts.shape[1], (len(prompts), count), generator=generator))


def _probe(prompts: Tensor, regime: Regime, generator: torch.Generator) -> Probe:
    topics = _draw(prompts, PROBES, generator)
    return Probe(topics, torch.rand(*topics.shape, regime.length, generator=generator))


def _annotate(teacher: Tensor, topics: Tensor, regime: Regime, generator: torch.Generator) -> Pairs:
    uniform = torch.rand(*topics.shape, regime.length, generator=generator)
    responses = sample(teacher, topics, uniform)
    return Pairs(topics, positions(topics, responses, regime.topics, regime.tokens))


def _converge(fresh: Weights, train: Pairs, held_out: Pairs, regime: Regime) -> Weights:
    """Supervised fine-tuning, each seed with the number of epochs that its validation prefers."""
    weights = {name: value.clone().requires_grad_() for name, value in fresh.items()}
    optimizer, rates = RMSProp(weights, MAX_NORM), torch.full((regime.seeds,), WARM_RATE)
    best, scores = fresh, _score(fresh, held_out, regime)
    for _ in range(WARM_EPOCHS):
        for where in train.where.split(regime.batch, dim=1):
            optimizer.step(-log_likelihood(table_of(weights, regime), where).mean(-1).sum(), rates)
        now = {name: value.detach().clone() for name, value in weights.items()}
        score = _score(now, held_out, regime)
        better = (score > scores)[:, None, None]
        best = {name: torch.where(better, now[name], best[name]) for name in fresh}
        scores = torch.maximum(score, scores)
    return best


def _score(weights: Weights, held_out: Pairs, regime: Regime) -> Tensor:
    return log_likelihood(table_of(weights, regime), held_out.where).mean(-1)
