"""Members of a comparison on the same held-out prompts, and in pairs: how much more one gives than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.common.errors import DataError
from iris_core.common.intervals import Floats, Interval, ratio
from iris_core.common.strict import Strict
from iris_core.pipeline.specs import Member, TrainSpec
from iris_core.store import Manifest, named_manifest
from iris_core.tracking.measures import bounded_interval


@dataclass(frozen=True)
class Heldout:
    """What a member's last models gave on each held-out prompt, in the order of ids: means over seeds, shape [prompts].

    Attributes:
        logprob: of the annotated answer, in nats.
        tokens: of that answer.
        correct: share of the seeds whose answer is right; None where answers were not checked.
    """

    logprob: Floats
    tokens: Floats
    correct: Floats | None


class Difference(Strict):
    """How much more a member gives than another, over held-out prompts, with 95 % intervals; seeds are pooled.

    Attributes:
        accuracy: share of right answers; None where answers were not checked.
        logprob: log-prob per token of the annotated answers, in nats.
    """

    accuracy: Interval | None
    logprob: Interval


def check_prompts(members: Sequence[Member]) -> None:
    """Compares the held-out prompts of all members.

    Raises:
        DataError: two members were not measured on the same prompts.
    """
    first, *others = members
    expected = _prompts(first)
    for other in others:
        if _prompts(other) != expected:
            raise DataError(
                f"comparison: {other.objective} with seed {other.seed} was not measured on the held-out prompts of "
                f"{first.objective} with seed {first.seed}, because the data changed between their loops: run it under "
                "another name"
            )


def heldout_columns(manifests: Sequence[Manifest]) -> dict[str, Floats]:
    """What a stage measured on each held-out prompt, one run for each seed: columns of shape [seeds, prompts].

    Runs on the same prompts have them in the same order, that of their ids.
    """
    tables = [_heldout_table(manifest) for manifest in manifests]
    numeric = [field.name for field in tables[0].schema if not pa.types.is_string(field.type)]
    return {name: np.array([table[name].to_pylist() for table in tables], np.float64) for name in numeric}


def heldout_of(trained: Sequence[Manifest], scored: Sequence[Manifest]) -> Heldout:
    """The held-out figures of a member.

    Args:
        trained: of the last training of each seed.
        scored: of the last evaluation of each seed.
    """
    measured = heldout_columns(trained)
    answered = [manifest for manifest in scored if "heldout" in manifest.outputs]
    return Heldout(
        logprob=measured["annotated_policy"].mean(0),
        tokens=measured["annotated_tokens"].mean(0),
        correct=heldout_columns(answered)["correct"].mean(0) if answered else None,
    )


def difference(one: Heldout, other: Heldout) -> Difference:
    """How much more `one` gives than `other`, prompt by prompt.

    The interval of accuracy is the adjusted one for matched pairs (`bounded_interval`), that of log-prob a studentised
    bootstrap of the prompts (`intervals.ratio`).
    """
    accuracy = None
    if one.correct is not None and other.correct is not None:
        accuracy = bounded_interval([one.correct - other.correct])
    return Difference(accuracy=accuracy, logprob=ratio(one.logprob - other.logprob, one.tokens, seed=0))


def _prompts(member: Member) -> list[list[str]]:
    """The ids of the prompts that the last training of a member, and its last evaluation, were measured on."""
    found = [named_manifest(stage) for stage in (*member.train[-1:], *member.evaluate[-1:])]
    return [_heldout_table(manifest)["prompt_id"].to_pylist() for manifest in found if "heldout" in manifest.outputs]


def _heldout_table(manifest: Manifest) -> pa.Table:
    """What a training or an evaluation measured, a row for each held-out prompt, in the order of `prompt_id`."""
    table = pq.read_table(manifest.artifact("heldout").intact())
    if manifest.stage == TrainSpec.stage:  # its rows are those of the pairs
        pairs = TrainSpec.of(manifest).pairs.intact()
        ids = pq.read_table(pairs, columns=["prompt_id"], filters=[("split", "==", "heldout")])
        table = table.append_column("prompt_id", ids["prompt_id"])
    return table.sort_by("prompt_id")
