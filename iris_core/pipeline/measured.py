"""What the stages measured of a model, item by item, so that it can challenge the champion (`iris_core.tracking`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from iris_core.common.digest import json_digest
from iris_core.pipeline.comparable import exact_match_settings, logprob_settings
from iris_core.pipeline.metrics import EvaluateMetrics
from iris_core.pipeline.scores import BenchmarkRecord
from iris_core.store import Manifest
from iris_core.tracking.measures import Measure, Measures

SCORE_SETTINGS = {"limit", "backend", "apply_chat_template", "chat_template", "dtype", "data", "lm_eval"}


def measures_of(manifests: Mapping[str, Manifest], pairs: Path) -> Measures:
    """What the stages `evaluate` and `train` measured.

    Args:
        manifests: of the stages behind a model, by stage.
        pairs: the file of annotated pairs that these stages read.
    """
    evaluated, trained = manifests.get("evaluate"), manifests.get("train")
    heldout = _heldout_digest(pairs)
    return Measures(
        average=_average(evaluated),
        exact_match=_exact_match(evaluated, heldout),
        logprob=_logprob(trained, "annotated_policy", heldout),
        opponent_logprob=_logprob(trained, "annotated_opponent", heldout),
    )


def _average(evaluated: Manifest | None) -> Measure | None:
    names = sorted(EvaluateMetrics.of(evaluated).benchmarks) if evaluated else []
    if evaluated is None or not names:
        return None
    folder = evaluated.artifact("scores").intact()
    records = [BenchmarkRecord.read(folder / f"{name}.json") for name in names]
    if any(record.label for record in records):
        return None
    settings = records[0].model_dump(include=SCORE_SETTINGS)
    settings |= {"benchmarks": names, "protocol": [record.protocol for record in records]}
    return _measure(settings, {name: record.items for name, record in zip(names, records, strict=True)})


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
    """The measure; None without items, or where a value is not a number."""
    known = all(part and np.isfinite(part).all() for part in values.values())
    return Measure(settings=settings, values=values, tokens=tokens) if known else None


def _heldout_digest(pairs: Path) -> str:
    """SHA-256 of the held-out pairs that `prepare` wrote, tokens included. The pairs to train on may differ."""
    rows = parquet.read_table(pairs, filters=[("split", "==", "heldout")]).to_pylist()
    return json_digest([{name: value for name, value in row.items() if value is not None} for row in rows])
