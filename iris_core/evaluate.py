"""Stage `evaluate`: the ten benchmarks and the held-out prompts, by one engine.

    python -m iris_core.evaluate --spec spec.json --out DIR

A benchmark's record is written as soon as it is known, so a stage that is killed redoes at most one benchmark. Two
scores may stand in one column if their records' `protocol` is the same.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.common import intervals
from iris_core.common.digest import json_digest
from iris_core.common.errors import DataError, EvaluationError
from iris_core.common.files import make_folder
from iris_core.common.progress import Progress
from iris_core.data.pairs import Pair, load_pairs
from iris_core.data.templates import Template
from iris_core.evaluation import harness
from iris_core.evaluation.answers import answer, extract
from iris_core.evaluation.benchmarks import LABEL_FILE, Benchmark, benchmark
from iris_core.execution import engine_process
from iris_core.execution.stage import main
from iris_core.modeling import loading
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.store import Artifact, Outcome, versions
from iris_core.store.units import Units, keep_only

SCORES = "scores"
HELDOUT = "heldout.parquet"
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("annotated", pa.string()),
        ("response", pa.string()),
        ("correct", pa.bool_()),
    ]
)

log = logging.getLogger(__name__)
Record = dict[str, Any]


def evaluate(spec: EvaluateSpec, out: Path) -> Outcome:
    """Scores `spec.policy`, resuming at the first benchmark without a record.

    Raises:
        EvaluationError: a benchmark is unknown, or its data is missing; before any model is loaded.
        DataError: no annotated held-out answer matches the answer pattern.
    """
    loading.verify(spec.policy)
    verify_data(spec.data)
    make_folder(out / SCORES)
    units = Units(out, spec.key())
    chosen = [benchmark(name) for name in spec.evaluation.benchmarks]
    wanted = {item.name: settings(spec, item) for item in chosen}
    pending = [item for item in chosen if not _scored(units, item.name, wanted[item.name])]
    pairs = heldout_pairs(spec)
    asks = bool(pairs) and not units.holds(out / HELDOUT)
    if pending or asks:
        _run(spec, out, pending, wanted, pairs if asks else [], total=len(chosen) + bool(pairs))
    keep_only(out / SCORES, {_file(out, name).name for name in wanted})
    metrics = summarize({name: _read(_file(out, name)) for name in wanted})
    outputs = {"scores": out / SCORES}
    if pairs:
        outputs["heldout"] = out / HELDOUT
        metrics["heldout"] = exact_match(out / HELDOUT)
    return Outcome(outputs=outputs, metrics=metrics)


def settings(spec: EvaluateSpec, item: Benchmark) -> Record:
    """Everything but the model that decides a score; known before it is run."""
    part = spec.evaluation
    return {
        "benchmark": item.name,
        "task": item.task,
        "shots": item.shots,
        "metric": item.metric,
        "filter": item.filter,
        "limit": part.limit,
        "apply_chat_template": part.apply_chat_template,
        "chat_template": _template_settings(spec) if part.apply_chat_template else None,
        "fewshot_seed": harness.FEWSHOT_SEED,
        "max_gen_tokens": part.max_gen_tokens if item.generates else None,
        "backend": harness.resolve_backend(part.backend),
        "dtype": spec.dtype,
        "data": spec.data.digest if spec.data else "hub",
        "label": label(spec.data),
        "lm_eval": versions("lm-eval").get("lm-eval"),
    }


def _template_settings(spec: EvaluateSpec) -> Record:
    return {"date": spec.template_date.isoformat(), "variables": spec.chat_template_kwargs}


def label(data: Artifact | None) -> str | None:
    """What scores on `data` must be labelled with ("miniature"), or None."""
    file = data.path / LABEL_FILE if data else None
    return file.read_text(encoding="utf-8").strip() if file and file.is_file() else None


def verify_data(data: Artifact | None) -> None:
    """Raises EvaluationError if the mirror is missing, or no longer holds what its digest says."""
    if data is None:
        return
    if not data.path.is_dir():
        raise EvaluationError(
            f"evaluation.data_dir: there is no folder {data.path}: make a mirror where there is a network, with "
            f"`python -m iris_core.mirror --out {data.path}`"
        )
    if Artifact.of(data.path).digest != data.digest:
        raise EvaluationError(f"evaluation.data_dir: {data.path} has changed since this spec was made: run again")


def summarize(records: dict[str, Record]) -> dict[str, Any]:
    """The metrics of the stage: a score a benchmark, and their plain mean with its standard error."""
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


def heldout_pairs(spec: EvaluateSpec) -> list[Pair]:
    """The held-out pairs whose annotated answer can be checked: none without an answer pattern.

    Raises:
        DataError: no annotated answer matches the pattern.
    """
    if spec.answer_pattern is None:
        return []
    pairs = load_pairs(spec.pairs, "heldout")
    checked = [pair for pair in pairs if extract(spec.answer_pattern, pair.response) is not None]
    if pairs and not checked:
        raise DataError(
            f"data.answer_pattern: {spec.answer_pattern!r} is found in no annotated held-out answer, such as "
            f"{pairs[0].response[-80:]!r}: fix the pattern, or leave it out"
        )
    return checked


def exact_match(path: Path) -> dict[str, Any]:
    """The share of correct held-out answers with its exact 95 % interval."""
    correct = pq.read_table(path, columns=["correct"])["correct"].to_pylist()
    found = intervals.proportion(sum(correct), len(correct))
    return {"exact_match": found.model_dump(), "n": len(correct)}


@engine_process.watched("evaluate")
def _run(
    spec: EvaluateSpec,
    out: Path,
    pending: list[Benchmark],
    wanted: dict[str, Record],
    pairs: list[Pair],
    total: int,
) -> None:
    """Scores the benchmarks `pending` and answers the prompts of `pairs`. Data is loaded before the model."""
    started, units = time.monotonic(), Units(out, spec.key())
    tasks = harness.load_tasks([item.name for item in pending], spec.data)
    log.info("loaded the tasks of %d benchmarks in %.1f s", len(tasks), time.monotonic() - started)
    progress = Progress("evaluate", total, done=total - len(pending) - bool(pairs))
    batch_size = int(spec.execution.get("batch_size", harness.BATCH_SIZE))
    started = time.monotonic()
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    lm = harness.open_model(
        spec.policy,
        harness.resolve_backend(spec.evaluation.backend),
        spec.dtype,
        template=Template(tokenizer, spec.chat_template_kwargs, spec.template_date),
        ends=spec.stop_token_ids,
        trust_remote_code=spec.trust_remote_code,
        batch_size=batch_size,
    )
    log.info("opened the engine in %.1f s", time.monotonic() - started)
    for item in pending:
        record = _score(spec, lm, item, tasks.pop(item.name), wanted[item.name])
        with units.writing(_file(out, item.name)) as place:
            place.write_text(json.dumps(record, indent=1), encoding="utf-8")
        progress.advance(benchmark=item.name, score=record["value"], seconds=record["seconds"])
    if pairs:
        with units.writing(out / HELDOUT) as place:
            _answer(spec, lm, pairs, place, batch_size)
        progress.advance(benchmark="held-out prompts")


def _score(spec: EvaluateSpec, lm: Any, item: Benchmark, tasks: harness.Tasks, chosen: Record) -> Record:
    started = time.monotonic()
    result = harness.score(
        lm,
        item,
        tasks,
        limit=spec.evaluation.limit,
        apply_chat_template=spec.evaluation.apply_chat_template,
        max_gen_tokens=chosen["max_gen_tokens"],
    )
    protocol = {"task_version": result.task_version, "items_digest": result.items_digest, **chosen}
    return {
        **protocol,
        "protocol": json_digest(protocol),
        "model": spec.policy.model.digest,
        "adapter": spec.policy.adapter.digest if spec.policy.adapter else None,
        "versions": spec.versions,
        "value": result.value,
        "stderr": result.stderr,
        "n": len(result.items),
        "recorded": result.recorded,
        "items": result.items,
        "seconds": time.monotonic() - started,
    }


def _answer(spec: EvaluateSpec, lm: Any, pairs: list[Pair], path: Path, batch_size: int) -> None:
    """Answers the prompts of `pairs` greedily, checks the answers and writes them to `path`."""
    assert spec.answer_pattern is not None
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    prompts = [pair.prompt_ids for pair in pairs]
    answers = answer(lm, prompts, spec.max_new_tokens, spec.stop_token_ids, 2 * batch_size)
    rows = []
    for pair, token_ids in zip(pairs, answers, strict=True):
        response = tokenizer.decode(token_ids, skip_special_tokens=True)
        correct = extract(spec.answer_pattern, response) == extract(spec.answer_pattern, pair.response)
        rows.append(
            {
                "prompt_id": pair.prompt_id,
                "prompt": pair.prompt,
                "annotated": pair.response,
                "response": response,
                "correct": correct,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def _file(out: Path, name: str) -> Path:
    """Where the record of benchmark `name` lies."""
    return out / SCORES / f"{name}.json"


def _read(path: Path) -> Record:
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def _scored(units: Units, name: str, wanted: Record) -> bool:
    """Whether benchmark `name` has a record that was made with the settings `wanted`."""
    path = _file(units.folder, name)
    if not units.holds(path):
        return False
    record = _read(path)
    return all(record.get(key) == value for key, value in wanted.items())


if __name__ == "__main__":
    main(EvaluateSpec, evaluate)
