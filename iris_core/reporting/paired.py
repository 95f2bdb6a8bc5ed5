"""Members of a comparison in pairs: how much more one gives than another on the same held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from iris_core.common.intervals import Floats, Interval, ratio
from iris_core.common.strict import Strict
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Manifest
from iris_core.tracking.measures import bounded_interval

ByPrompt = dict[str, float]


class Heldout(Strict):
    """What a member's last models gave, by the id of the held-out prompt; each value is a mean over seeds.

    Attributes:
        logprob: of the annotated answer, in nats.
        tokens: of that answer.
        correct: share of the seeds whose answer is right; empty where answers were not checked.
    """

    logprob: ByPrompt
    tokens: ByPrompt
    correct: ByPrompt


class Difference(Strict):
    """How much more a member gives than another, over held-out prompts, with 95 % intervals; seeds are pooled.

    Attributes:
        accuracy: share of right answers; None where one of the two has none.
        logprob: log-prob per token of the annotated answers, in nats.
    """

    accuracy: Interval | None
    logprob: Interval


def heldout_of(trained: Sequence[Manifest], scored: Sequence[Manifest]) -> Heldout:
    """The held-out figures of a member.

    Args:
        trained: of the last training of each seed.
        scored: of the last evaluation of each seed.
    """
    tables = [_trained_table(manifest) for manifest in trained]
    answers = [
        pq.read_table(manifest.artifact("heldout").intact(), columns=["prompt_id", "correct"]).to_pylist()
        for manifest in scored
        if "heldout" in manifest.outputs
    ]
    return Heldout(
        logprob=_means((row["prompt_id"], row["annotated_policy"]) for table in tables for row in table),
        tokens=_means((row["prompt_id"], row["annotated_tokens"]) for table in tables for row in table),
        correct=_means((row["prompt_id"], float(row["correct"])) for rows in answers for row in rows),
    )


def difference(one: Heldout, other: Heldout) -> Difference:
    """How much more `one` gives than `other`, prompt by prompt.

    The interval of accuracy is the adjusted one for matched pairs (`bounded_interval`), that of log-prob a studentised
    bootstrap of the prompts (`intervals.ratio`).
    """
    answered = _changes(one.correct, other.correct)
    shared = [prompt for prompt in one.tokens if prompt in other.tokens]
    tokens = np.array([one.tokens[prompt] for prompt in shared], np.float64)
    return Difference(
        accuracy=bounded_interval([answered]) if len(answered) else None,
        logprob=ratio(_changes(one.logprob, other.logprob), tokens, seed=0),
    )


def _changes(one: ByPrompt, other: ByPrompt) -> Floats:
    """One minus the other, of the prompts that both have, in the order of `one`."""
    return np.array([value - other[prompt] for prompt, value in one.items() if prompt in other], np.float64)


def _trained_table(trained: Manifest) -> list[dict[str, Any]]:
    """The rows of a training's held-out table, with the ids of their prompts."""
    pairs = pq.read_table(
        TrainSpec.of(trained).pairs.intact(), columns=["prompt_id", "split"], filters=[("split", "==", "heldout")]
    )
    table = pq.read_table(trained.artifact("heldout").intact(), columns=["annotated_policy", "annotated_tokens"])
    return table.append_column("prompt_id", pairs["prompt_id"]).to_pylist()


def _means(values: Iterable[tuple[str, float]]) -> ByPrompt:
    """The mean value of each prompt."""
    found: dict[str, list[float]] = {}
    for prompt, value in values:
        found.setdefault(prompt, []).append(value)
    return {prompt: sum(of) / len(of) for prompt, of in found.items()}
