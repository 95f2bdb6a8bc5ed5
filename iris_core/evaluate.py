"""Stage `evaluate`: the ten benchmarks and the held-out prompts; with several GPUs, on all of them.

    python -m iris_core.evaluate --spec spec.json --out DIR

A benchmark's record is written as soon as it is known: a stage that is killed redoes at most one benchmark an engine.
Benchmarks and the held-out prompts are the stage's items (`iris_core.execution.items`). Two scores may stand in one
column if their records' `protocol` is the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from iris_core.modeling.patches.imports import UNUSED_IN_EVALUATION, begin_imports

if __name__ == "__main__":
    begin_imports(UNUSED_IN_EVALUATION)

import numpy as np
import pyarrow.parquet as pq

from iris_core.common import intervals
from iris_core.common.digest import json_digest
from iris_core.common.files import make_folder
from iris_core.common.progress import Progress
from iris_core.config.verification import VerifierKind
from iris_core.data.judged import judgeable
from iris_core.data.pairs import Pair, load_pairs
from iris_core.data.templates import Template
from iris_core.evaluation import folder, harness
from iris_core.evaluation.benchmarks import Benchmark, benchmark
from iris_core.evaluation.heldout import checkable, write_answers
from iris_core.evaluation.records import is_current, protocol_settings, score_benchmark
from iris_core.execution.items import run_items
from iris_core.execution.stage import main
from iris_core.generation import backends
from iris_core.modeling import loading
from iris_core.pipeline.metrics import EvaluateMetrics, ExactMatch
from iris_core.pipeline.scores import Average, BenchmarkRecord, Score
from iris_core.pipeline.specs import EVALUATION_BATCH, EvaluateSpec
from iris_core.pipeline.verifier import check_unchanged
from iris_core.store import Outcome
from iris_core.store.units import Units, keep_only
from iris_core.verification.verdicts import undecided_warnings

SCORES = "scores"
HELDOUT = "heldout.parquet"
HELDOUT_ITEM = "held-out prompts"

log = logging.getLogger(__name__)


def evaluate(spec: EvaluateSpec, out: Path) -> Outcome:
    """Scores `spec.policy` on the benchmarks without a record, and answers the held-out prompts.

    Raises:
        EvaluationError: a benchmark is unknown, or its data is missing; before any model is loaded.
        DataError: no annotated held-out answer matches the answer pattern.
        VerificationError: the verifier does not work.
    """
    spec = _with_backend(spec)
    backends.check_tensor_parallel("evaluation.backend", spec.evaluation.backend, spec.execution.tensor_parallel)
    check_unchanged(spec.verification, spec.verifier_digest)
    loading.verify(spec.policy, spec.execution.patience)
    folder.verify(spec.data)
    make_folder(out / SCORES)
    chosen = [benchmark(name) for name in spec.evaluation.benchmarks]
    pending = [item for item in chosen if not _is_scored(spec, out, item)]
    pairs = _checkable(spec)
    unanswered = pairs if pairs and not _units(spec, out).holds(out / HELDOUT) else []
    if pending or unanswered:
        _run(spec, out, pending, unanswered, total=len(chosen) + bool(pairs))
    keep_only(out / SCORES, {_file(out, item.name).name for item in chosen})
    records = {item.name: BenchmarkRecord.read(_file(out, item.name)) for item in chosen}
    outputs = {"scores": out / SCORES, **({"heldout": out / HELDOUT} if pairs else {})}
    return Outcome(outputs=outputs, metrics=summarize(records, outputs.get("heldout"), spec.verification.kind))


def scorer(spec: EvaluateSpec, out: Path, tasks: dict[str, harness.Tasks] | None = None) -> Callable[[str], None]:
    """Opens an engine. Returns the function that scores the benchmark with a name, or answers the held-out prompts.

    Args:
        spec: the stage's, with the backend that all its engines have.
        out: the stage's folder.
        tasks: of benchmarks, where they are loaded already.
    """
    if spec.execution.launcher == "ray":  # the stage has looked at those of another machine
        check_unchanged(spec.verification, spec.verifier_digest)
    loaded, units, started = tasks or {}, _units(spec, out), time.monotonic()
    batch_size = spec.execution.batch_size or EVALUATION_BATCH
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    lm = harness.open_model(
        spec.policy,
        spec.evaluation.backend,
        spec.dtype,
        template=Template(tokenizer, spec.chat_template_kwargs, spec.template_date),
        stop_token_ids=spec.stop_token_ids,
        trust_remote_code=spec.trust_remote_code,
        batch_size=batch_size,
        tensor_parallel=spec.execution.tensor_parallel,
    )
    log.info("opened the engine in %.1f s", time.monotonic() - started)

    def score(name: str) -> None:
        if name == HELDOUT_ITEM:
            with units.writing(out / HELDOUT) as temporary:
                write_answers(temporary, spec, lm, _checkable(spec), batch_size)
            return
        item = benchmark(name)
        task = loaded.pop(name, None) or harness.load_tasks([name], spec.data)[name]
        record = score_benchmark(spec, lm, item, task, protocol_settings(spec, item))
        with units.writing(_file(out, name)) as temporary:
            record.write(temporary)

    return score


def summarize(
    records: dict[str, BenchmarkRecord], heldout: Path | None, verifier: VerifierKind = "none"
) -> EvaluateMetrics:
    """The metrics of the stage: a score for each benchmark, their average, and exact match in the file `heldout`."""
    scores = {name: record.score for name, record in records.items()}
    return EvaluateMetrics(
        benchmarks=scores,
        label=next((record.label for record in records.values()), None),
        average=_average(list(scores.values())) if scores else None,
        heldout=exact_match(heldout) if heldout else None,
        exact_set=exact_set(heldout) if heldout and verifier == "sql" else None,
        warnings=undecided_answers(heldout) if heldout and verifier != "none" else [],
    )


def _average(scores: list[Score]) -> Average:
    """The plain mean of the scores with its standard error, which is None if one of theirs is."""
    known = [score.stderr for score in scores if score.stderr is not None]
    error = float(np.sqrt(np.square(known).sum()) / len(scores)) if len(known) == len(scores) else None
    return Average(
        value=float(np.mean([score.value for score in scores])),
        stderr=error,
        benchmarks=len(scores),
        protocol=json_digest(sorted(score.protocol for score in scores)),
    )


def exact_match(path: Path) -> ExactMatch:
    """The share of correct held-out answers, by the verifier or by exact match, with its exact 95 % interval."""
    return _share(pq.read_table(path, columns=["correct"])["correct"].to_pylist())


def undecided_answers(path: Path) -> list[str]:
    """A warning if the verifier could not judge many held-out answers, which then are not correct."""
    return undecided_warnings(pq.read_table(path, columns=["verdict", "reason"]).to_pylist(), "held-out answers")


def exact_set(path: Path) -> ExactMatch:
    """The share of held-out answers that are queries with the same parts as the references, with its interval."""
    from iris_core.verification.sql import SAME_PARTS

    rows = pq.read_table(path, columns=["correct", "reason"]).to_pylist()
    return _share([row["correct"] and row["reason"] == SAME_PARTS for row in rows])


def _share(correct: list[bool]) -> ExactMatch:
    return ExactMatch(exact_match=intervals.proportion(sum(correct), len(correct)), n=len(correct))


def _run(spec: EvaluateSpec, out: Path, pending: list[Benchmark], pairs: list[Pair], total: int) -> None:
    """Scores the `pending` benchmarks and answers the prompts of `pairs`. Data is loaded before the model.

    Args:
        spec: the stage's.
        out: the stage's folder.
        pending: benchmarks without a record.
        pairs: held-out pairs without an answer.
        total: steps of the whole stage, those of an earlier try included.
    """
    started, units = time.monotonic(), _units(spec, out)
    tasks = harness.load_tasks([item.name for item in pending], spec.data)
    log.info("loaded the tasks of %d benchmarks in %.1f s", len(tasks), time.monotonic() - started)
    progress = Progress("evaluate", total, done=total - len(pending) - bool(pairs))

    def on_done(name: str) -> None:
        if name == HELDOUT_ITEM:
            units.written(out / HELDOUT)
            progress.advance(benchmark=name)
            return
        record = BenchmarkRecord.read(units.written(_file(out, name)))
        progress.advance(benchmark=name, score=record.value, seconds=record.seconds)

    # an item that generates takes longer than one that is only scored, then the number of prompts decides
    lengths = {item.name: (item.generates, harness.count(tasks[item.name], spec.evaluation.limit)) for item in pending}
    lengths |= {HELDOUT_ITEM: (True, len(pairs))} if pairs else {}
    names = sorted(lengths, key=lambda name: lengths[name], reverse=True)
    run_items(spec, out, names, lambda spec, out: scorer(spec, out, tasks), on_done)


def _with_backend(spec: EvaluateSpec) -> EvaluateSpec:
    """`spec` with the engine that "auto" means where its engines run: one for all of them, and for their units."""
    backend = harness.resolve_backend(spec.evaluation.backend, spec.execution)
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"backend": backend})})


def _units(spec: EvaluateSpec, out: Path) -> Units:
    return Units(out, spec.key(), spec.execution.patience)


def _is_scored(spec: EvaluateSpec, out: Path, item: Benchmark) -> bool:
    return is_current(_units(spec, out), _file(out, item.name), protocol_settings(spec, item))


def _checkable(spec: EvaluateSpec) -> list[Pair]:
    """The held-out pairs whose answers can be checked; none without a verifier or an answer pattern."""
    if spec.verification.judges:
        return judgeable(load_pairs(spec.pairs, "heldout"), spec.verification, spec.answer_pattern)
    return checkable(spec.answer_pattern, load_pairs(spec.pairs, "heldout")) if spec.answer_pattern else []


def _file(out: Path, name: str) -> Path:
    """The file with the record of benchmark `name`."""
    return out / SCORES / f"{name}.json"


if __name__ == "__main__":
    main(EvaluateSpec, evaluate, scorer)
