"""Runs in MLflow, idempotently: found again by their tags; points, parameters and data sets are logged once.

    client = tracking.connect("sqlite:////data/mlflow.db")
    experiment = claim_experiment(client, "demo", Path("artifacts"))
    run_id = claim_run(client, experiment, "iteration-0", {"iris.key": "..."}, started_ms)
    log_points(client, run_id, points({"gap": 0.7}, step=0, milliseconds=started_ms))

Whatever is done here can be done again after a kill at any point and leaves what one undisturbed run leaves.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from iris_core.errors import ConfigError

KIND = "custom_model_development"  # the UI opens on training runs, not on traces of an application
PARENT_TAG = "mlflow.parentRunId"
METRICS_A_REQUEST = 1000  # MLflow's limits
PARAMS_A_REQUEST = 100
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36


def claim_experiment(client: MlflowClient, name: str, artifacts: Path) -> str:
    """The id of the MLflow experiment `name`, made if missing.

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
            f"the MLflow experiment {name!r} was deleted: restore it with `mlflow experiments restore -x {found.experiment_id}`, or give the IRIS experiment another name"
        )
    return str(found.experiment_id)


def claim_run(
    client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str], started: int
) -> str:
    """The id of the oldest run that carries `tags`, made if there is none.

    Two processes that make it at once agree on the older one; the younger, still empty, is deleted.

    Args:
        client: from `connect`.
        experiment: the id of the MLflow experiment.
        name: what a new run is called.
        tags: what the run is recognised by.
        started: start time of a new run, in milliseconds since 1970.
    """
    runs = _find_runs(client, experiment, tags)
    if not runs:
        own = client.create_run(
            experiment, start_time=started, tags=dict(tags), run_name=name
        ).info.run_id
        runs = _find_runs(client, experiment, tags) or [own]
        if own != runs[0]:
            client.delete_run(own)
    return runs[0]


def log_points(client: MlflowClient, run_id: str, points: Sequence[Metric]) -> int:
    """Logs those of `points` whose (name, step, value) the run does not hold yet; returns how many."""
    by_name: dict[str, list[Metric]] = defaultdict(list)
    for point in points:
        by_name[point.key].append(point)
    held = set(client.get_run(run_id).data.metrics)
    fresh = []
    for name, group in by_name.items():
        known = (
            {(m.step, str(m.value)) for m in client.get_metric_history(run_id, name)}
            if name in held
            else set()
        )
        fresh += [point for point in group if (point.step, str(point.value)) not in known]
    for start in range(0, len(fresh), METRICS_A_REQUEST):
        client.log_batch(run_id, metrics=fresh[start : start + METRICS_A_REQUEST], synchronous=True)
    return len(fresh)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Logs `params`. MLflow never changes one: a value that differs from the run's becomes the tag `changed.<name>`."""
    held = client.get_run(run_id).data.params
    clipped = {name: value[:LONGEST_PARAM] for name, value in params.items()}
    missing = [Param(name, value) for name, value in clipped.items() if name not in held]
    changed = [
        RunTag(f"changed.{name}", value)
        for name, value in clipped.items()
        if held.get(name, value) != value
    ]
    for start in range(0, len(missing), PARAMS_A_REQUEST):
        client.log_batch(run_id, params=missing[start : start + PARAMS_A_REQUEST], synchronous=True)
    if changed:
        client.log_batch(run_id, tags=changed[:PARAMS_A_REQUEST], synchronous=True)


def log_dataset(
    client: MlflowClient,
    run_id: str,
    name: str,
    file: Path,
    digest: str,
    profile: Mapping[str, Any],
) -> None:
    """Records a Parquet file, or a folder of them, as an input of context `train`; once, however often called."""
    dataset = Dataset(
        name=name,
        digest=digest[:LONGEST_DIGEST],
        source_type="local",
        source=json.dumps({"uri": str(file), "sha256": digest}),
        schema=json.dumps({"mlflow_colspec": _columns(file)}),
        profile=json.dumps(dict(profile)),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])])


def points(
    metrics: Mapping[str, Any], step: int, milliseconds: int, model_id: str | None = None
) -> list[Metric]:
    """`metrics` as MLflow points of one step; what is not a number is left out."""
    return [
        Metric(name, float(value), milliseconds, step, model_id=model_id)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _find_runs(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[str]:
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs([experiment], wanted, max_results=100)
    return [
        run.info.run_id
        for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
    ]


def _columns(file: Path) -> list[dict[str, Any]]:
    """The columns of the first Parquet file at `file`, in MLflow's spelling."""
    first = file if file.is_file() else next(iter(sorted(file.glob("**/*.parquet"))), None)
    schema = parquet.read_schema(first) if first else []
    return [{"name": field.name, "type": str(field.type), "required": True} for field in schema]
