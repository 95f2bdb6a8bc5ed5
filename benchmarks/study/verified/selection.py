"""Which cell and iteration of a method counts: chosen on some seeds, reported on others.

A criterion is a likelihood budget. A model may lose so many nats of validation log-likelihood against the best
supervised model, and has the largest validity of samples on validation prompts. Without a budget the likelihood
decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmarks.study.results import Floats
from benchmarks.study.verified.results import Result

Budget = float | None
BUDGETS: tuple[Budget, ...] = (None, 1.0, 4.0)  # nats below the best supervised model
LADDER: tuple[Budget, ...] = (
    None,
    0.25,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
)  # what confirms, for `validity_at_likelihood`


class Choice(NamedTuple):
    """A model of a method.

    Attributes:
        cell: learning rate, and β or ρ.
        iteration: after which it is taken; 0 is the initial model.
    """

    cell: tuple[float, float]
    iteration: int


def best_likelihood(supervised: Iterable[Result]) -> float:
    """The largest mean validation log-likelihood of any supervised model."""
    return max(float(_means(result, "validation").max()) for result in supervised)


def choose(result: Result, budget: Budget, best: float) -> Choice:
    """The best cell and iteration by the means over seeds.

    Args:
        result: of the seeds that choose.
        budget: the criterion.
        best: `best_likelihood` of the same seeds.
    """
    cell, iteration = np.unravel_index(_scores(result, budget, best).argmax(), _means(result, "validation").shape)
    return Choice(result.job.cells[int(cell)], int(iteration))


def score(result: Result, budget: Budget, best: float) -> float:
    """What `choose` makes largest."""
    return float(_scores(result, budget, best).max())


def _scores(result: Result, budget: Budget, best: float) -> Floats:
    likelihood = _means(result, "validation")
    if budget is None:
        return likelihood
    return np.where(likelihood >= best - budget, _means(result, "sampled_validity"), -np.inf)


def _means(result: Result, measure: str) -> Floats:
    """Means over seeds, shape [cells, iterations + 1]; a model that is not finite is the worst."""
    values = result.measures[measure].mean(axis=1)
    return np.where(np.isfinite(values), values, -np.inf)


class Model(NamedTuple):
    """A chosen model of every seed: measures of shape [seeds, …]."""

    measures: dict[str, Floats]

    def at(self, measure: str) -> Floats:
        """A measure, at temperature 1 where there are several, shape [seeds]."""
        values = self.measures[measure]
        return values if values.ndim == 1 else values[:, 0]


def model(result: Result, choice: Choice) -> Model:
    """The chosen model in a result that has its cell."""
    cell = result.job.cells.index(choice.cell)
    return Model({name: values[cell, :, choice.iteration] for name, values in result.measures.items()})


def validity_at(reference: Model, entropies: Floats) -> Floats:
    """Validity of a reference at the temperatures where it has the given entropies [seeds], interpolated."""
    curves = zip(reference.measures["entropy"], reference.measures["validity"], reference.at("greedy"), strict=True)
    return np.array(
        [
            np.interp(wanted, [0.0, *entropy[::-1]], [greedy, *validity[::-1]])
            for wanted, (entropy, validity, greedy) in zip(entropies, curves, strict=True)
        ]
    )


def validity_at_likelihood(ladder: Iterable[Model], likelihoods: Floats) -> Floats:
    """Validity of a method where it has the given validation log-likelihoods [seeds], interpolated between its models.

    Args:
        ladder: the models that the method chose within larger and larger budgets.
        likelihoods: one for every seed.
    """
    models = list(ladder)
    likelihood, validity = (np.stack([model.at(name) for model in models]) for name in ("validation", "validity"))
    order = likelihood.argsort(axis=0)
    curves = zip(*(np.take_along_axis(values, order, axis=0).T for values in (likelihood, validity)), strict=True)
    return np.array([np.interp(wanted, *curve) for wanted, curve in zip(likelihoods, curves, strict=True)])


def wins(ours: Model, theirs: Model) -> Floats:
    """Share of test prompts where our sampled response is more probable in the data than theirs, shape [seeds]."""
    difference = ours.measures["scores"] - theirs.measures["scores"]
    return ((difference > 0) + (difference == 0) / 2).mean(axis=1)
