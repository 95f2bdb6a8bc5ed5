"""The record of a benchmark's score: a JSON file with the settings that decide it, the score and each item's metric.

Two scores are comparable if their records have the same `protocol`, a digest of everything but the model.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from iris_core.common.digest import json_digest
from iris_core.evaluation import folder, harness
from iris_core.evaluation.benchmarks import Benchmark
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.store import versions
from iris_core.store.units import Units

Record = dict[str, Any]


def protocol_settings(spec: EvaluateSpec, item: Benchmark) -> Record:
    """The settings that decide a score, but for the model; known before the benchmark runs."""
    part = spec.evaluation
    template = {"date": spec.template_date.isoformat(), "variables": spec.chat_template_kwargs}
    return {
        "benchmark": item.name,
        "task": item.task,
        "shots": item.shots,
        "metric": item.metric,
        "filter": item.filter,
        "limit": part.limit,
        "apply_chat_template": part.apply_chat_template,
        "chat_template": template if part.apply_chat_template else None,
        "fewshot_seed": harness.FEWSHOT_SEED,
        "max_gen_tokens": part.max_gen_tokens if item.generates else None,
        "backend": harness.resolve_backend(part.backend),
        "dtype": spec.dtype,
        "data": spec.data.digest if spec.data else "hub",
        "label": folder.label(spec.data),
        "lm_eval": versions("lm-eval").get("lm-eval"),
    }


def score_benchmark(spec: EvaluateSpec, lm: Any, item: Benchmark, tasks: harness.Tasks, settings: Record) -> Record:
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
        max_gen_tokens=settings["max_gen_tokens"],
    )
    protocol = {"task_version": result.task_version, "items_digest": result.items_digest, **settings}
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


def read_record(path: Path) -> Record:
    """The record in the file `path`."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def is_current(units: Units, path: Path, settings: Record) -> bool:
    """Whether the record at `path` is there, whole, and made with `settings`."""
    if not units.holds(path):
        return False
    record = read_record(path)
    return all(record.get(key) == value for key, value in settings.items())
