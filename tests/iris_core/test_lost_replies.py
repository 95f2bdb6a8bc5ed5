"""`register` where MLflow's replies are lost, or MLflow is away for a while: what is there in the end is there once."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from iris_core import tracking
from iris_core.common import outages
from iris_core.common.errors import ConfigError, OutageError, ServiceError
from iris_core.pipeline.specs import RegisterSpec
from iris_core.register import register
from iris_core.store import Execution, Manifest, read_manifest, run_stage
from iris_core.tracking import registry
from iris_core.tracking.client import Client
from iris_core.tracking.runs import get_or_create_run, log_points, points
from tests.iris_core.small_experiment import SmallExperiment
from tests.lossy_proxy import LossyProxy, Request, lossy_proxy

pytestmark = pytest.mark.integration
MAKES = (
    "runs/create",
    "logged-models",
    "registered-models/create",
    "model-versions/create",
    "runs/outputs",
)


@pytest.fixture
def proxy(mlflow_server: str) -> Iterator[LossyProxy]:
    with lossy_proxy(mlflow_server) as proxy:
        yield proxy


def at(spec: RegisterSpec, uri: str, patience: float = 600.0) -> RegisterSpec:
    return spec.model_copy(update={"tracking_uri": uri, "execution": Execution(patience=patience)})


def do(small: SmallExperiment, spec: RegisterSpec) -> Manifest:
    return run_stage(spec, small.store.folder(spec), register)


class FirstReplies:
    """Loses the reply to every request that writes, when it is made for the first time."""

    def __init__(self, wanted: Callable[[Request], bool] = lambda request: True):
        self.wanted = wanted
        self.lost: set[str] = set()

    def __call__(self, request: Request) -> bool:
        if request.method == "GET" or not self.wanted(request) or request.digest() in self.lost:
            return False
        self.lost.add(request.digest())
        return True


def files(client: Client, run_id: str, path: str | None = None) -> list[str]:
    found = client.list_artifacts(run_id, path)
    return [name for item in found for name in (files(client, run_id, item.path) if item.is_dir else [item.path])]


def state(uri: str, name: str) -> dict[str, Any]:
    """Everything that MLflow holds of an experiment, without ids and times of its own."""
    client = tracking.connect(uri)
    experiment = client.get_experiment_by_name(name).experiment_id
    runs = client.search_runs([experiment])
    names = {run.info.run_id: run.info.run_name for run in runs}
    models = client.search_logged_models([experiment])
    titles = {model.model_id: model.name for model in models}
    return {
        "runs": sorted((run.info.run_name, run.info.status, run.info.start_time, run.info.end_time) for run in runs),
        "deleted": len(client.search_runs([experiment], run_view_type=2)),
        "tags": {
            run.info.run_name: {tag: names.get(text, text) for tag, text in run.data.tags.items()} for run in runs
        },
        "params": {run.info.run_name: run.data.params for run in runs},
        "points": {
            (run.info.run_name, key): [
                (m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)
            ]
            for run in runs
            for key in run.data.metrics
        },
        "inputs": {
            run.info.run_name: sorted((d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs)
            for run in runs
        },
        "outputs": {
            run.info.run_name: sorted((titles[o.model_id], o.step) for o in run.outputs.model_outputs)
            for run in runs
            if run.outputs
        },
        "files": {run.info.run_name: sorted(files(client, run.info.run_id)) for run in runs},
        "models": sorted(
            (m.name, str(m.status), sorted(item.path for item in client.list_logged_model_artifacts(m.model_id)))
            for m in models
        ),
        "scores": {m.name: sorted((p.key, p.value, p.step) for p in m.metrics or []) for m in models},
        "versions": [
            (
                str(v.version),
                titles[v.source.removeprefix("models:/")],
                {tag: names.get(t, t) for tag, t in v.tags.items()},
            )
            for v in registry.versions(client, name)
        ],
        "aliases": {alias: str(v) for alias, v in client.get_registered_model(name).aliases.items()},
    }


def test_every_reply_lost_once_leaves_what_an_undisturbed_run_leaves(proxy, tmp_path):
    """One process runs the first spec and repeats its steps; the second spec has a new process each time."""
    small = SmallExperiment(tmp_path, [0.3], name="lossy")
    initial, first = [small.initial(), *small.iterations()]
    for spec in (initial, first):
        do(small, spec)
    undisturbed = state(small.experiment.tracking_uri, "lossy")

    proxy.loses = repeated = FirstReplies()
    do(small, at(initial, proxy.uri))
    assert len(repeated.lost) > 25
    proxy.loses = restarted = FirstReplies(lambda request: request.path.endswith(MAKES))
    broken = 0
    while read_manifest(small.store.folder(at(first, proxy.uri))) is None:
        try:
            do(small, at(first, proxy.uri, patience=0.0))
        except ServiceError:
            broken += 1
    assert broken == len(restarted.lost) >= len(MAKES)
    assert state(proxy.uri, "lossy") == undisturbed


def test_a_server_that_fails_now_and_then_is_asked_again(proxy, tmp_path):
    small = SmallExperiment(tmp_path, [0.3], name="flaky")
    spec = small.initial()
    do(small, spec)
    undisturbed = state(small.experiment.tracking_uri, "flaky")
    answers = [502, 0, 503, 504, 429]

    def refuses(request: Request) -> int | None:
        count = len(proxy.seen)
        return answers[count // 7 % len(answers)] if count % 7 == 0 else None

    proxy.refuses = refuses
    do(small, at(spec, proxy.uri))
    proxy.refuses = lambda request: None
    assert state(proxy.uri, "flaky") == undisturbed


def test_an_outage_is_said_at_once_and_waited_out(proxy, tmp_path, caplog):
    small = SmallExperiment(tmp_path, [0.3], name="away")
    spec = at(small.initial(), proxy.uri)
    back = threading.Event()
    proxy.refuses = lambda request: 0 if len(proxy.seen) > 20 and not back.is_set() else None
    with caplog.at_level(logging.INFO):
        working = threading.Thread(target=do, args=(small, spec))
        working.start()
        while "waiting up to 600 s" not in caplog.text:
            assert working.is_alive()
            time.sleep(0.05)
        back.set()
        working.join()
    assert caplog.text.count("waiting up to") == 1
    assert "it answers again" in caplog.text
    assert read_manifest(small.store.folder(spec)) is not None


def test_patience_ends_with_what_a_rerun_resumes(proxy, tmp_path):
    small = SmallExperiment(tmp_path, [0.3], name="patience")
    spec = small.initial()
    proxy.refuses = lambda request: 0 if len(proxy.seen) > 20 else None
    with pytest.raises(OutageError, match=r"tracking\.patience\): run again to resume") as caught:
        do(small, at(spec, proxy.uri, patience=0.5))
    assert (caught.value.exit_code, caught.value.retryable) == (75, False)
    proxy.refuses = lambda request: None
    manifest = do(small, at(spec, proxy.uri, patience=0.5))
    assert manifest.metrics["version"] == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_no_outage(proxy, tmp_path, status):
    small = SmallExperiment(tmp_path, [0.3], name=f"refused-{status}")
    proxy.refuses = lambda request: status if len(proxy.seen) > 20 else None
    with pytest.raises(ConfigError, match=f"refuses these credentials .{status}.: set MLFLOW_TRACK"):
        do(small, at(small.initial(), proxy.uri))


def test_a_locked_database_is_waited_for(tmp_path, caplog):
    small = SmallExperiment(tmp_path, [0.3])
    tracking.connect(small.experiment.tracking_uri)
    spec = small.initial()
    with closing(sqlite3.connect(tmp_path / "store" / "mlflow.db", check_same_thread=False)) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(ServiceError, match="is in use by another process .database is locked."):
            tracking.check(small.experiment.tracking_uri)
        working = threading.Thread(target=do, args=(small, spec))
        working.start()
        while "waiting up to 600 s" not in caplog.text:
            assert working.is_alive()
            time.sleep(0.05)
        holder.rollback()
        working.join()
    assert read_manifest(small.store.folder(spec)).metrics["version"] == 1
    with closing(sqlite3.connect(tmp_path / "store" / "mlflow.db")) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(ServiceError, match="database is locked"):
            tracking.holds(small.experiment.tracking_uri, ["a"])


def test_empty_doubles_of_an_earlier_lost_reply_go(tmp_path):
    client = tracking.connect(f"sqlite:///{tmp_path}/mlflow.db", 0.0)
    made = [client.create_run("0", tags={"iris.key": "a"}, start_time=t) for t in (1000, 2000, 3000)]
    client.log_param(made[1].info.run_id, "order", "2")
    assert get_or_create_run(client, "0", "x", {"iris.key": "a"}, 4000) == made[1].info.run_id
    assert [run.info.run_id for run in client.search_runs(["0"])] == [made[1].info.run_id]


@pytest.mark.parametrize("call", ["search_runs", "create_run"])
def test_a_server_that_is_silent_is_named_before_the_request_ends(proxy, monkeypatch, caplog, call):
    monkeypatch.setattr(outages, "SLOW_S", 0.1)
    client = tracking.connect(proxy.uri, 600.0)

    def hold(request: Request) -> None:
        """Keeps the request until the silence was said, or for 30 s."""
        for _ in range(600):
            if "has not answered yet" not in caplog.text:
                time.sleep(0.05)

    proxy.refuses = hold
    getattr(client, call)("0" if call == "create_run" else ["0"])
    assert f"MLflow at {proxy.uri} has not answered yet: waiting for it" in caplog.text


@pytest.mark.parametrize("lost", [1, 2])
def test_a_check_asks_again_where_a_reply_is_lost(proxy, lost):
    before = len(proxy.seen)
    proxy.loses = lambda request: len(proxy.seen) - before <= lost
    tracking.check(proxy.uri)
    assert [request.path for request in proxy.seen[before : before + lost + 1]] == [proxy.seen[before].path] * (
        lost + 1
    )


def test_a_point_is_logged_once_although_the_database_has_no_negative_zero(mlflow_server):
    client = tracking.connect(mlflow_server, 0.0)
    run = client.create_run("0").info.run_id
    assert log_points(client, run, points({"loss": -0.0}, step=1, milliseconds=1)) == 1
    assert log_points(client, run, points({"loss": -0.0}, step=1, milliseconds=2)) == 0
    assert [metric.timestamp for metric in client.get_metric_history(run, "loss")] == [1]
