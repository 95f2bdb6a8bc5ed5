"""What an iteration changed, from the log-probs of responses before and after it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from iris_core.common.intervals import FEWEST, Floats, Interval, mean, ratio
from iris_core.common.parquet import write_parquet
from iris_core.data.packing import Group
from iris_core.objectives.gap import gap_warnings, measure_gap
from iris_core.objectives.order import Movement
from iris_core.pipeline.metrics import HeldoutMetrics, StepMetrics, TrainMetrics
from iris_core.pipeline.specs import TrainSpec

SUMS = ["annotated_cut", "annotated_rest", "synthetic"]  # as `Group.sums` counts them


def measure(
    spec: TrainSpec,
    groups: list[Group],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    path: Path,
    steps: StepMetrics,
) -> TrainMetrics:
    """The gap and other measures on held-out pairs; the rows that they come from are written to `path`.

    Args:
        spec: has β and the seed of the bootstrap.
        groups: the held-out pairs.
        before: log-probs of responses under the opponent, by split, shape [pairs, 3] in the order of `SUMS`.
        after: the same under the policy.
        path: Parquet file for the held-out rows.
        steps: what training itself measured.
    """
    old, new = before["heldout"].double().numpy(), after["heldout"].double().numpy()
    tokens = np.array([group.first(2).sums for group in groups], np.float64)
    rewards = spec.objective.beta * (new - old)
    moved = _movement(before, after, spec.seed)
    gap = measure_gap(rewards[:, 0], rewards[:, 2], moved.heldout_margin)
    _write_heldout(path, opponent=old, policy=new, tokens=tokens)
    per_token = functools.partial(ratio, counts=tokens[:, :2].sum(1), seed=spec.seed)
    before_whole, after_whole = old[:, :2].sum(1), new[:, :2].sum(1)
    return TrainMetrics(
        gap=gap,
        movement=moved,
        heldout=HeldoutMetrics(
            annotated_logprob_per_token=per_token(after_whole),
            opponent_annotated_logprob_per_token=per_token(before_whole),
            annotated_logprob_gain_per_token=per_token(after_whole - before_whole),
            reward_margin=spec.objective.beta * moved.heldout_margin.value,
            synthetic_kl_per_token=float((old - new)[:, 2].sum() / tokens[:, 2].sum()),
        ),
        train=steps,
        warnings=[*gap_warnings(gap), *_few_pairs(len(groups)), *_no_weights(spec, steps)],
    )


def _movement(before: dict[str, Tensor], after: dict[str, Tensor], seed: int) -> Movement:
    """The margins of trained and of held-out pairs, from their log-probs under both models."""

    def margin(split: str) -> Interval:
        ratios = (after[split] - before[split]).double().numpy()
        return mean(ratios[:, 0] - ratios[:, 2], seed)

    training = margin("train") if len(after["train"]) > 1 else None
    return Movement(training_margin=training, heldout_margin=margin("heldout"))


def _few_pairs(pairs: int) -> list[str]:
    if pairs >= FEWEST:
        return []
    return [f"{pairs} held-out pairs: intervals of fewer than {FEWEST} may be too short; raise data.heldout"]


def _no_weights(spec: TrainSpec, steps: StepMetrics) -> list[str]:
    if steps.up != 0 or steps.down != 0:
        return []
    left = "nothing was learned" if spec.objective.name == "spin" else "annotated pairs alone were trained on"
    return [
        f"verification: no response had a weight, so that {left}: raise generation.samples, or add prompts that are "
        "answered right at times"
    ]


def _write_heldout(path: Path, **tables: Floats) -> None:
    """Writes one row per pair; each table has the shape [pairs, 3], in the order of `SUMS`."""
    columns = {}
    for name, table in tables.items():
        columns[f"annotated_{name}"] = table[:, :2].sum(1)
        columns[f"annotated_cut_{name}"] = table[:, 0]
        columns[f"synthetic_{name}"] = table[:, 2]
    write_parquet(path, pa.table(columns))


def summary(history: Path, synthetic: Mapping[str, int]) -> StepMetrics:
    """Means over the steps of an iteration, its last loss, and how its `synthetic` responses were used."""
    rows = [json.loads(line) for line in history.read_text().splitlines()]

    def mean(name: str) -> float | None:
        """Over the steps that have it."""
        found = [row[name] for row in rows if name in row]
        return sum(found) / len(found) if found else None

    last = rows[-1]
    return StepMetrics(
        steps=len(rows),
        loss=last["loss"],
        ess_annotated=mean("ess/annotated"),
        ess_synthetic=mean("ess/synthetic"),
        reward_margin=last.get("reward/margin"),
        reward_accuracy=last.get("reward/accuracy"),
        tokens_per_second=float(sum(row["tokens_per_second"] for row in rows) / len(rows)),
        memory_gb=max(row["memory_gb"] for row in rows),
        synthetic=dict(synthetic),
        share_right=mean("verified/share_right"),
        up=mean("verified/up"),
        down=mean("verified/down"),
    )
