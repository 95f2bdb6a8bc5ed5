"""What a complete loop leaves, in a form that is equal for equal loops, whatever faults they had."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from iris_core.common.uris import sqlite_uri
from iris_core.pipeline.metrics import EvaluateMetrics, RegisterMetrics
from iris_core.store import Manifest, read_manifest
from tests.faults.loop import NAME

TIMED = re.compile(r"seconds|tokens_per_second|memory_gb|^time$")  # numbers that differ between runs
OWN_PARAMS = ("store", "tracking.uri")  # what differs between the loops of one campaign
UNFINISHED = ("RUNNING", "PENDING", "SCHEDULED", "CANCELLING")

Tree = Mapping[str, Any]


def outcome(store: Path, places: Sequence[str]) -> dict[str, Any]:
    """What the loop in `store` has left; `places` are those of its stages."""
    return {
        "stages": stages(store / NAME, places),
        "MLflow": mlflow(store / "mlflow.db"),
        "Prefect": {"unfinished": unfinished(store / ".prefect" / "prefect.db")},
        "files": files(store),
    }


def differences(found: Tree, wanted: Tree, where: str = "") -> list[str]:
    """A line for each value that differs between the trees."""
    lines = []
    for name in sorted({*found, *wanted}):
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differences(one, other, f"{where}{name}: ")
        elif one != other:
            lines.append(f"{where}{name}: {_short(one)}, without faults {_short(other)}")
    return lines


def stages(home: Path, places: Sequence[str]) -> dict[str, Any]:
    """The digest of every output of every stage; outputs that hold times are compared without them."""
    found: dict[str, Any] = {}
    for place in places:
        manifest = read_manifest(home / place)
        found[place] = _outputs(manifest) if manifest else "missing"
    return found


def _outputs(manifest: Manifest) -> dict[str, Any]:
    timed = ("scores", "history", "registration")
    found: dict[str, Any] = {name: output.digest for name, output in manifest.outputs.items() if name not in timed}
    if "history" in manifest.outputs:
        rows = manifest.artifact("history").path.read_text().splitlines()
        found["history"] = [_untimed(json.loads(row)) for row in rows]
    if manifest.stage == "evaluate":
        found["scores"] = {name: score.model_dump() for name, score in EvaluateMetrics.of(manifest).benchmarks.items()}
    if manifest.stage == "register":
        registered = RegisterMetrics.of(manifest)
        found["version"] = [registered.version, registered.champion]
    return found


def _untimed(numbers: Tree) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if not TIMED.search(name)}


def mlflow(database: Path) -> dict[str, Any]:
    """Experiments, runs with all their content, logged models, versions and aliases."""
    uri = sqlite_uri(database)
    client = MlflowClient(uri, uri)
    experiments = client.search_experiments()
    ids = [experiment.experiment_id for experiment in experiments]
    runs = client.search_runs(ids)
    names = {run.info.run_id: run.info.run_name for run in runs}
    models = client.search_logged_models(ids)
    return {
        "experiments": _count(experiment.name for experiment in experiments),
        "runs": _count(names.values()),
        "run": {run.info.run_name: _run(client, run, names) for run in runs},
        "logged models": _count(f"{model.name} {model.status}" for model in models),
        "versions": {
            str(version.version): _version(version, names)
            for version in client.search_model_versions(f"name = '{NAME}'")
        },
        "aliases": {
            alias: str(version)
            for model in client.search_registered_models()
            for alias, version in model.aliases.items()
        },
    }


def _run(client: MlflowClient, run: Run, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "status": run.info.status,
        "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
        "tags": sorted(run.data.tags),
        "params": {n: v for n, v in run.data.params.items() if n not in OWN_PARAMS},
        "points": {name: _points(client, run, name) for name in run.data.metrics if not TIMED.search(name)},
        "data sets": _count(f"{entry.dataset.name} {entry.dataset.digest}" for entry in run.inputs.dataset_inputs),
        "models": len(run.outputs.model_outputs) if run.outputs else 0,
    }


def _points(client: MlflowClient, run: Run, name: str) -> list[Any]:
    history = client.get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def _version(version: ModelVersion, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "status": version.status,
        "run": names.get(version.run_id),
        **{name: text for name, text in version.tags.items() if name != "run"},
    }


def unfinished(database: Path) -> dict[str, int]:
    """How many runs are unfinished in Prefect, by kind and state; nothing without a Prefect database."""
    if not database.exists():
        return {}
    with closing(sqlite3.connect(database)) as connection:
        return _count(
            f"{kind} {state}"
            for kind in ("flow_run", "task_run")
            for (state,) in connection.execute(f"select state_type from {kind}")
            if state in (None, *UNFINISHED)
        )


def files(store: Path) -> dict[str, Any]:
    """The files of the stages without their keys, files of MLflow without their ids, and hidden files elsewhere."""
    objects = store / "objects"
    kept = (
        re.sub(r"-[0-9a-f]{16}(?=/)", "", str(file.relative_to(objects)))
        for file in objects.rglob("*")
        if file.is_file()
    )
    artifacts = store / "mlflow-artifacts"
    logged = (
        re.sub("[0-9a-f]{32}", "*", "/".join(file.relative_to(artifacts).parts[1:]))
        for file in artifacts.rglob("*")
        if file.is_file()
    )
    hidden = [file for file in store.glob(".*") if file.is_file()]
    hidden += (store / NAME).rglob(".*")
    return {
        "of stages": dict.fromkeys(kept, 1),  # a stage may run again under another key
        "of MLflow": _count(logged),
        "left behind": _count(str(file.relative_to(store)) for file in hidden),
    }


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names))


def _short(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) < 300 else f"{text[:300]}…"
