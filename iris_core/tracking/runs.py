"""Runs in MLflow, idempotently: found again by their tags; points, parameters and data sets are logged once.

    client = tracking.connect("sqlite:////data/mlflow.db")
    experiment = get_or_create_experiment(client, "demo", Path("artifacts"))
    run_id = get_or_create_run(client, experiment, "iteration-0", {"iris.key": "..."}, started_ms)
    log_points(client, run_id, points({"gap": 0.7}, step=0, milliseconds=started_ms))

Each call may be repeated after a kill or a lost reply: MLflow then holds the same as after one call. Where a lost reply
led to two runs, the second is removed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.git_utils import get_git_commit

from iris_core.common.errors import ConfigError
from iris_core.tracking.client import Client, repeatable

KIND = "custom_model_development"  # the UI opens on training runs, not on traces of an application
PARENT_TAG = "mlflow.parentRunId"
LOOP_END = "iris.ended"  # the tag of the run that a loop ended with; its value identifies the loop
METRICS_A_REQUEST = 1000  # MLflow's limits
PARAMS_A_REQUEST = 100
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36


@repeatable
def get_or_create_experiment(client: Client, name: str, artifacts: Path) -> str:
    """The id of the MLflow experiment `name`, created if missing.

    Args:
        client: from `connect`.
        name: the experiment's name.
        artifacts: where artifacts go when no server decides that (SQLite and other databases).
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        served = client.tracking_uri.startswith(("http", "databricks"))
        try:
            place = None if served else str(artifacts / name)
            return str(client.create_experiment(name, place, {"mlflow.experimentKind": KIND}))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted: restore it with `mlflow experiments restore -x "
            f"{found.experiment_id}`, or give the IRIS experiment another name"
        )
    return str(found.experiment_id)


@repeatable
def get_or_create_run(client: Client, experiment: str, name: str, tags: Mapping[str, str], started: int) -> str:
    """The id of the run with `tags`, created if there is none.

    Of several runs, the oldest that holds something counts; those that hold nothing are deleted. So two processes that
    create it at once agree on one, and a lost reply leaves one run only.

    Args:
        client: from `connect`.
        experiment: the id of the MLflow experiment.
        name: what a new run is called.
        tags: they identify the run.
        started: start time of a new run, in milliseconds since 1970.
    """
    found = _find_runs(client, experiment, tags)
    if not found:
        client.create_run(experiment, start_time=started, tags=dict(tags), run_name=name)
        found = _find_runs(client, experiment, tags)
    first, *others = found
    for run in others:
        if _is_empty(run):
            client.delete_run(run.info.run_id)
    return str(first.info.run_id)


def set_tags(client: Client, run_id: str, tags: Mapping[str, str]) -> None:
    """Sets tags in one request."""
    client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()], synchronous=True)


def log_files(client: Client, run_id: str, path: Path, base: Path | None = None) -> None:
    """Uploads a file, or all files of a folder, named relative to `base` (None: to the folder of `path`)."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for file in sorted(files):
        below = file.parent.relative_to(base or path.parent)
        client.log_artifact(run_id, str(file), str(below) if below.parts else None)


def log_points(client: Client, run_id: str, points: Sequence[Metric]) -> int:
    """Logs those of `points` that the run, or the model they name, does not hold yet; returns how many.

    A point is identified by name, step and value. MLflow writes to the run first and to the model then, so that the
    model alone may lack a point.
    """
    fresh = _without_held(client, run_id, points)
    for start in range(0, len(fresh), METRICS_A_REQUEST):
        client.log_batch(run_id, metrics=fresh[start : start + METRICS_A_REQUEST], synchronous=True)
    return len(fresh)


@repeatable
def log_output(client: Client, run_id: str, model_id: str, step: int) -> None:
    """Records a logged model as an output of `run_id` in `step`; once, however often called."""
    outputs = client.get_run(run_id).outputs
    if model_id not in {model.model_id for model in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=step)])


def log_params(client: Client, run_id: str, params: Mapping[str, str]) -> None:
    """Logs `params`. MLflow never changes one: a value that differs from the run's becomes the tag `changed.<name>`."""
    held = client.get_run(run_id).data.params
    clipped = {name: value[:LONGEST_PARAM] for name, value in params.items()}
    missing = [Param(name, value) for name, value in clipped.items() if name not in held]
    changed = [RunTag(f"changed.{name}", value) for name, value in clipped.items() if held.get(name, value) != value]
    for start in range(0, len(missing), PARAMS_A_REQUEST):
        client.log_batch(run_id, params=missing[start : start + PARAMS_A_REQUEST], synchronous=True)
    if changed:
        client.log_batch(run_id, tags=changed[:PARAMS_A_REQUEST], synchronous=True)


def log_dataset(
    client: Client,
    run_id: str,
    name: str,
    file: Path,
    digest: str,
    profile: Mapping[str, Any],
) -> None:
    """Records a Parquet file, or a folder of them, as an input of the run with the context `train`; once."""
    dataset = Dataset(
        name=name,
        digest=digest[:LONGEST_DIGEST],
        source_type="local",
        source=json.dumps({"uri": str(file), "sha256": digest}),
        schema=json.dumps({"mlflow_colspec": _columns(file)}),
        profile=json.dumps(dict(profile)),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])])


def points(metrics: Mapping[str, Any], step: int, milliseconds: int, model_id: str | None = None) -> list[Metric]:
    """`metrics` as MLflow points of one step; values that are no numbers are left out.

    MLflow's database returns −0.0 as 0.0, so that 0.0 is logged.
    """
    return [
        Metric(name, float(value) + 0.0, milliseconds, step, model_id=model_id)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def history_points(history: Path) -> list[Metric]:
    """The rows of a training history as points, each at its own step and time."""
    found = []
    for line in history.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        step, milliseconds = int(row.pop("step")), int(row.pop("time") * 1000)
        found += points(row, step, milliseconds)
    return found


def loop_end(client: Client, experiment: str, parent: str, loop: str) -> int | None:
    """When a loop ended, in milliseconds since 1970; None while it runs.

    Args:
        client: from `connect`.
        experiment: the id of the MLflow experiment.
        parent: the id of the experiment's run.
        loop: identifies the loop: what its last run has as the tag `LOOP_END`.
    """
    wanted = f"tags.`{PARENT_TAG}` = '{parent}' and tags.`{LOOP_END}` = '{loop}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment], wanted, max_results=1)
    return int(found[0].info.end_time) if found else None


def source_tags() -> dict[str, str]:
    """The program and, in a git checkout, its commit, as MLflow shows them in its columns."""
    tags = {"mlflow.source.name": "iris", "mlflow.source.type": "LOCAL"}
    commit = get_git_commit(str(Path(__file__).parent))
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def _find_runs(client: Client, experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """The runs with `tags`, the one that counts first."""
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs([experiment], wanted, max_results=100)
    return sorted(runs, key=lambda run: (_is_empty(run), run.info.start_time, run.info.run_id))


def _is_empty(run: Run) -> bool:
    return not run.data.metrics and not run.data.params


def _without_held(client: Client, run_id: str, points: Sequence[Metric]) -> list[Metric]:
    """Those of `points` that are missing. A point that the model alone lacks gets the time that it has in the run."""
    by_name: dict[str, list[Metric]] = defaultdict(list)
    for point in points:
        by_name[point.key].append(point)
    held = set(client.get_run(run_id).data.metrics)
    models = {point.model_id for point in points if point.model_id}
    in_models = {
        (metric.model_id, metric.key, metric.step, str(metric.value))
        for model in models
        for metric in client.get_logged_model(model).metrics or []
    }
    fresh = []
    for name, group in by_name.items():
        history = client.get_metric_history(run_id, name) if name in held else []
        times = {(metric.step, str(metric.value)): metric.timestamp for metric in history}
        for point in group:
            known = times.get((point.step, str(point.value)))
            lacks = point.model_id and (point.model_id, name, point.step, str(point.value)) not in in_models
            if known is None:
                fresh.append(point)
            elif lacks:
                fresh.append(Metric(name, point.value, known, point.step, model_id=point.model_id))
    return fresh


def _columns(file: Path) -> list[dict[str, Any]]:
    """The columns of the first Parquet file at `file`, in MLflow's spelling."""
    first = file if file.is_file() else next(iter(sorted(file.glob("**/*.parquet"))), None)
    schema = parquet.read_schema(first) if first else []
    return [{"name": field.name, "type": str(field.type), "required": True} for field in schema]
