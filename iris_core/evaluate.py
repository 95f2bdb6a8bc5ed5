"""Stage `evaluate`: the ten benchmarks and the held-out prompts, by one engine.

    python -m iris_core.evaluate --spec spec.json --out DIR

A benchmark's record is written as soon as it is known: a stage that is killed redoes at most one benchmark. Two scores
may stand in one column if their records' `protocol` is the same.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from iris_core.common import intervals
from iris_core.common.digest import json_digest
from iris_core.common.files import make_folder
from iris_core.common.progress import Progress
from iris_core.data.pairs import Pair, load_pairs
from iris_core.data.templates import Template
from iris_core.evaluation import folder, harness
from iris_core.evaluation.benchmarks import Benchmark, benchmark
from iris_core.evaluation.heldout import checkable, write_answers
from iris_core.evaluation.records import Record, is_current, protocol_settings, read_record, score_benchmark
from iris_core.execution import engine_process
from iris_core.execution.stage import main
from iris_core.modeling import loading
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.store import Outcome
from iris_core.store.units import Units, keep_only

SCORES = "scores"
HELDOUT = "heldout.parquet"

log = logging.getLogger(__name__)


def evaluate(spec: EvaluateSpec, out: Path) -> Outcome:
    """Scores `spec.policy`, starting at the first benchmark without a record.

    Raises:
        EvaluationError: a benchmark is unknown, or its data is missing; before any model is loaded.
        DataError: no annotated held-out answer matches the answer pattern.
    """
    loading.verify(spec.policy)
    folder.verify(spec.data)
    make_folder(out / SCORES)
    units = Units(out, spec.key())
    chosen = [benchmark(name) for name in spec.evaluation.benchmarks]
    settings = {item.name: protocol_settings(spec, item) for item in chosen}
    pending = [item for item in chosen if not is_current(units, _file(out, item.name), settings[item.name])]
    pairs = checkable(spec.answer_pattern, load_pairs(spec.pairs, "heldout")) if spec.answer_pattern else []
    unanswered = pairs if pairs and not units.holds(out / HELDOUT) else []
    if pending or unanswered:
        _run(spec, out, pending, settings, unanswered, total=len(chosen) + bool(pairs))
    keep_only(out / SCORES, {_file(out, name).name for name in settings})
    metrics = summarize({name: read_record(_file(out, name)) for name in settings})
    outputs = {"scores": out / SCORES}
    if pairs:
        outputs["heldout"] = out / HELDOUT
        metrics["heldout"] = exact_match(out / HELDOUT)
    return Outcome(outputs=outputs, metrics=metrics)


def summarize(records: dict[str, Record]) -> dict[str, Any]:
    """The metrics of the stage: a score for each benchmark, and their plain mean with its standard error."""
    scores = {
        name: {key: record[key] for key in ("value", "stderr", "n", "metric", "shots", "task", "protocol")}
        | {"recorded": record["recorded"]}
        for name, record in records.items()
    }
    values = [record["value"] for record in records.values()]
    errors = [record["stderr"] for record in records.values()]
    metrics: dict[str, Any] = {
        "benchmarks": scores,
        "label": next((r["label"] for r in records.values()), None),
    }
    if values:
        known = [error for error in errors if error is not None]
        metrics["average"] = {
            "value": float(np.mean(values)),
            "stderr": float(np.sqrt(np.square(known).sum()) / len(values)) if len(known) == len(values) else None,
            "benchmarks": len(values),
            "protocol": json_digest(sorted(record["protocol"] for record in records.values())),
        }
    return metrics


def exact_match(path: Path) -> dict[str, Any]:
    """The share of correct held-out answers, with its exact 95 % interval."""
    correct = pq.read_table(path, columns=["correct"])["correct"].to_pylist()
    found = intervals.proportion(sum(correct), len(correct))
    return {"exact_match": found.model_dump(), "n": len(correct)}


@engine_process.watched("evaluate")
def _run(
    spec: EvaluateSpec,
    out: Path,
    pending: list[Benchmark],
    settings: dict[str, Record],
    pairs: list[Pair],
    total: int,
) -> None:
    """Scores the `pending` benchmarks and answers the prompts of `pairs`. Data is loaded before the model.

    Args:
        spec: the stage's.
        out: the stage's folder.
        pending: benchmarks without a record.
        settings: what decides the score of each benchmark.
        pairs: held-out pairs without an answer.
        total: steps of the whole stage, those of an earlier try included.
    """
    started, units = time.monotonic(), Units(out, spec.key())
    tasks = harness.load_tasks([item.name for item in pending], spec.data)
    log.info("loaded the tasks of %d benchmarks in %.1f s", len(tasks), time.monotonic() - started)
    progress = Progress("evaluate", total, done=total - len(pending) - bool(pairs))
    batch_size = spec.execution.batch_size or harness.BATCH_SIZE
    started = time.monotonic()
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    lm = harness.open_model(
        spec.policy,
        harness.resolve_backend(spec.evaluation.backend),
        spec.dtype,
        template=Template(tokenizer, spec.chat_template_kwargs, spec.template_date),
        stop_token_ids=spec.stop_token_ids,
        trust_remote_code=spec.trust_remote_code,
        batch_size=batch_size,
    )
    log.info("opened the engine in %.1f s", time.monotonic() - started)
    for item in pending:
        record = score_benchmark(spec, lm, item, tasks.pop(item.name), settings[item.name])
        with units.writing(_file(out, item.name)) as temporary:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        progress.advance(benchmark=item.name, score=record["value"], seconds=record["seconds"])
    if pairs:
        with units.writing(out / HELDOUT) as temporary:
            write_answers(temporary, spec, lm, pairs, batch_size)
        progress.advance(benchmark="held-out prompts")


def _file(out: Path, name: str) -> Path:
    """The file with the record of benchmark `name`."""
    return out / SCORES / f"{name}.json"


if __name__ == "__main__":
    main(EvaluateSpec, evaluate)
