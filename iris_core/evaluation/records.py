"""Makes the record of a benchmark's score (`BenchmarkRecord`): settings that decide it, score, metric of each item.

Two scores are comparable if their records have the same `protocol`, a digest of everything but the model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from iris_core.common.digest import json_digest
from iris_core.evaluation import folder, harness
from iris_core.evaluation.benchmarks import Benchmark
from iris_core.pipeline.scores import BenchmarkRecord, ProtocolSettings
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.store import versions
from iris_core.store.units import Units


def protocol_settings(spec: EvaluateSpec, item: Benchmark) -> ProtocolSettings:
    """The settings that decide the score of `item` in this stage."""
    part = spec.evaluation
    template = {"date": spec.template_date.isoformat(), "variables": spec.chat_template_kwargs}
    return ProtocolSettings(
        benchmark=item.name,
        task=item.task,
        shots=item.shots,
        metric=item.metric,
        filter=item.filter,
        limit=part.limit,
        apply_chat_template=part.apply_chat_template,
        chat_template=template if part.apply_chat_template else None,
        fewshot_seed=harness.FEWSHOT_SEED,
        max_gen_tokens=part.max_gen_tokens if item.generates else None,
        backend=harness.resolve_backend(part.backend),
        dtype=spec.dtype,
        data=spec.data.digest if spec.data else "hub",
        label=folder.label(spec.data),
        lm_eval=versions("lm-eval").get("lm-eval"),
    )


def score_benchmark(
    spec: EvaluateSpec, lm: Any, item: Benchmark, tasks: harness.Tasks, settings: ProtocolSettings
) -> BenchmarkRecord:
    """Runs a benchmark and returns its record.

    Args:
        spec: the stage's.
        lm: from `harness.open_model`.
        item: the benchmark.
        tasks: from `harness.load_tasks`.
        settings: from `protocol_settings`.
    """
    started = time.monotonic()
    result = harness.score(
        lm,
        item,
        tasks,
        limit=spec.evaluation.limit,
        apply_chat_template=spec.evaluation.apply_chat_template,
        max_gen_tokens=settings.max_gen_tokens,
    )
    protocol = {"task_version": result.task_version, "items_digest": result.items_digest, **settings.model_dump()}
    return BenchmarkRecord(
        **protocol,
        protocol=json_digest(protocol),
        model=spec.policy.model.digest,
        adapter=spec.policy.adapter.digest if spec.policy.adapter else None,
        versions=spec.versions,
        value=result.value,
        stderr=result.stderr,
        n=len(result.items),
        recorded=result.recorded,
        items=result.items,
        seconds=time.monotonic() - started,
    )


def is_current(units: Units, path: Path, settings: ProtocolSettings) -> bool:
    """Whether the record at `path` is there, whole, and made with `settings`."""
    if not units.holds(path):
        return False
    record = BenchmarkRecord.read(path)
    return all(getattr(record, name) == value for name, value in settings)
