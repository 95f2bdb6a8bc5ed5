"""What a model scored, item by item, and how much better one model is than another on the same items.

A version's measures are the file `measures.json` of its MLflow run, so that versions can be compared after the store
that they come from is gone. Two measures are compared only if their settings are equal: the same items, asked in the
same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from iris_core.common import intervals
from iris_core.common.digest import json_digest
from iris_core.common.intervals import Interval
from iris_core.common.strict import Strict
from iris_core.store import Manifest
from iris_core.tracking.comparable import exact_match_settings, logprob_settings

SCORE_SETTINGS = (
    "limit",
    "backend",
    "apply_chat_template",
    "chat_template",
    "dtype",
    "data",
    "lm_eval",
)
NORMAL_95 = 1.96
Floats = NDArray[np.float64]


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


def measures_of(manifests: Mapping[str, Manifest], pairs: Path) -> Measures:
    """What the stages `evaluate` and `train` measured.

    Args:
        manifests: of the stages behind a model, by stage.
        pairs: the file of annotated pairs that they were given.
    """
    evaluated, trained = manifests.get("evaluate"), manifests.get("train")
    heldout = _heldout_digest(pairs)
    return Measures(
        average=_average(evaluated),
        exact_match=_exact_match(evaluated, heldout),
        logprob=_logprob(trained, "annotated_policy", heldout),
        opponent_logprob=_logprob(trained, "annotated_opponent", heldout),
    )


def policy_digest(model: str, adapter: str | None) -> str:
    """What weights are recognised by: the digests of the model and, where there is one, of the adapter on it."""
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


def _average(evaluated: Manifest | None) -> Measure | None:
    names = sorted(evaluated.metrics.get("benchmarks", {})) if evaluated else []
    if evaluated is None or not names:
        return None
    folder = evaluated.artifact("scores").intact()
    records = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    if any(record["label"] for record in records):
        return None
    settings = {name: records[0].get(name) for name in SCORE_SETTINGS}
    settings |= {"benchmarks": names, "protocol": [record["protocol"] for record in records]}
    return _measure(settings, {name: record["items"] for name, record in zip(names, records, strict=True)})


def _exact_match(evaluated: Manifest | None, heldout: str) -> Measure | None:
    if evaluated is None or "heldout" not in evaluated.outputs:
        return None
    table = parquet.read_table(evaluated.artifact("heldout").intact(), columns=["prompt_id", "annotated", "correct"])
    rows = sorted(table.to_pylist(), key=lambda row: (row["prompt_id"], row["annotated"]))
    settings = exact_match_settings(evaluated) | {"pairs": heldout}
    return _measure(settings, {"heldout": [float(row["correct"]) for row in rows]})


def _logprob(trained: Manifest | None, column: str, heldout: str) -> Measure | None:
    if trained is None or "heldout" not in trained.outputs:
        return None
    table = parquet.read_table(trained.artifact("heldout").intact(), columns=[column, "annotated_tokens"])
    settings = logprob_settings(trained) | {"pairs": heldout}
    return _measure(settings, {"heldout": table[column].to_pylist()}, table["annotated_tokens"].to_pylist())


def _measure(
    settings: dict[str, Any], values: dict[str, list[float]], tokens: list[float] | None = None
) -> Measure | None:
    """The measure, or None if there are no items or a value is not a number."""
    known = all(part and np.isfinite(part).all() for part in values.values())
    return Measure(settings=settings, values=values, tokens=tokens) if known else None


def _heldout_digest(pairs: Path) -> str:
    """SHA-256 of the held-out pairs in a file of the stage `prepare`, tokens included: those to train on may differ."""
    return json_digest(parquet.read_table(pairs, filters=[("split", "==", "heldout")]).to_pylist())
