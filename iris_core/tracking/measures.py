"""What a model scored, item by item, and how much better one model is than another on the same items.

A version's measures are the file `measures.json` of its MLflow run. So versions can be compared after the store that
they come from is gone. Two measures are compared only if their settings are equal: the same items, asked in the same
way.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from iris_core.common import intervals
from iris_core.common.digest import json_digest
from iris_core.common.intervals import Floats, Interval
from iris_core.common.strict import Strict

NORMAL_95 = 1.96


class Measure(Strict):
    """One kind of score.

    Attributes:
        settings: everything but the model that decides a value.
        values: the value of each item by part: a benchmark's metric in [0, 1], whether an answer is right (0 or 1), or
            the log-probability of an annotated response in nats.
        tokens: for log-probabilities, how many tokens each response has.
    """

    settings: dict[str, Any]
    values: dict[str, list[float]]
    tokens: list[float] | None = None

    @property
    def items(self) -> int:
        """How many items all parts have together."""
        return sum(map(len, self.values.values()))

    def same_items(self, other: Measure) -> bool:
        """Whether the two may be compared."""
        sizes = [{name: len(v) for name, v in one.values.items()} for one in (self, other)]
        return self.settings == other.settings and self.tokens == other.tokens and sizes[0] == sizes[1]


class Measures(Strict):
    """What is known of a model; None where something was not measured, or is not a number.

    Attributes:
        average: the benchmarks; None for scores with a label ("miniature"), which are no measure of a model.
        exact_match: held-out prompts with the model's greedy answer.
        logprob: held-out annotated responses.
        opponent_logprob: the same responses under the opponent that the model was trained against.
    """

    average: Measure | None = None
    exact_match: Measure | None = None
    logprob: Measure | None = None
    opponent_logprob: Measure | None = None


def policy_digest(model: str, adapter: str | None) -> str:
    """Identifies weights: a digest of the digests of the model and, where there is one, of the adapter on it."""
    return json_digest([model, adapter])


def paired_difference(challenger: Measure, champion: Measure) -> Interval:
    """How much higher the challenger is on the same items, with a 95 % interval.

    Benchmarks count alike, whatever their size. Log-probabilities are compared per token, over all tokens.

    Args:
        challenger: a measure for which `same_items(champion)` holds.
        champion: the other.
    """
    changes = [np.subtract(challenger.values[name], champion.values[name]) for name in champion.values]
    if champion.tokens is not None:
        return intervals.ratio(changes[0], np.asarray(champion.tokens), seed=0)
    return bounded_interval(changes)


def bounded_interval(changes: list[Floats]) -> Interval:
    """The mean over parts of the mean change, where changes lie in [-1, 1].

    Adjusted Wald interval for matched pairs (Agresti and Min 2005, Statistics in Medicine 24:729): half a change of
    +1, half a change of -1 and one of 0 are added to each part, so that it also holds for few items or few changes.

    Args:
        changes: for each part, the changes of its items, shape [items].
    """
    centers, variances = [], []
    for change in changes:
        size = len(change) + 2
        center = change.sum() / size
        centers.append(center)
        variances.append(((np.square(change).sum() + 1) / size - center**2) / size)
    value = float(np.mean([change.mean() for change in changes]))
    center, spread = float(np.mean(centers)), NORMAL_95 * math.sqrt(sum(variances)) / len(changes)
    low, high = max(-1.0, center - spread), min(1.0, center + spread)
    return Interval(value=value, low=low, high=high)
