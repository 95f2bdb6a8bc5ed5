"""Lost flow runs of the work pool are taken up by another worker, on a real server; those that live are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from mlflow.tracking import MlflowClient
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Completed, Pending, Running, State

from deployments import credentials, fleet, pool, processes
from iris_core.execution.supervision import Label, start
from iris_core.generate import generate
from iris_core.pipeline.specs import GenerateSpec
from iris_core.store import Store, run_stage
from tests.deployments.test_lost import CREDENTIALS, beat, server, state_of
from tests.deployments.test_services import ended, small, successors, wait_for, written
from tests.processes import environment

ROOT = Path(__file__).parents[2]
SILENCE_S = 10.0  # instead of 45: the rest of the minute is the worker's next look at its pool
WORKER = f"""
import asyncio
from deployments import fleet, worker
fleet.LOOK_EVERY_S, fleet.SILENCE_S = 1.0, {SILENCE_S}
asyncio.run(worker.work())
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.unit
def test_silence_counts_from_the_last_new_sign() -> None:
    clock = Clock()
    silences = fleet.Silences(clock)
    assert silences.note({"a": 1, "b": None}) == {"a": 0, "b": 0}
    clock.now = 20
    assert silences.note({"a": 2, "b": None, "c": 1}) == {"a": 0, "b": 20, "c": 0}
    clock.now = 40
    assert silences.note({"a": 2, "b": None}) == {"a": 20, "b": 40}


@pytest.mark.unit
def test_after_an_outage_everybody_gets_the_whole_time_again() -> None:
    clock = Clock()
    silences = fleet.Silences(clock)
    silences.note({"a": 1})
    clock.now = 20
    assert silences.note({"a": 1}) == {"a": 20}
    clock.now += fleet.GAP_S + 1  # no look succeeded meanwhile
    assert silences.note({"a": 1}) == {"a": 0}


@pytest.mark.unit
def test_a_run_that_lives_gives_more_than_one_sign_in_time_and_a_lost_one_is_noticed_within_a_minute() -> None:
    assert fleet.HEARTBEAT_S + 2 * fleet.LOOK_EVERY_S < fleet.SILENCE_S
    assert fleet.SILENCE_S + 2 * fleet.LOOK_EVERY_S < 60


@flow(name="iris")
def named(experiment: dict[str, str]) -> None:
    """A flow whose runs only have the states that a test gives them."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("fleet")) as url:
        pool.get_or_create(url)
        yield url


@pytest.fixture(scope="module")
def client(api: str) -> Iterator[SyncPrefectClient]:
    with credentials.client(api) as found:
        yield found


@pytest.fixture(scope="module")
def deployment(client: SyncPrefectClient) -> UUID:
    return client.create_deployment(client.create_flow(named), name="test", work_pool_name=pool.NAME)


def begin(client: SyncPrefectClient, deployment: UUID, name: str, worker: str | None, state: State) -> FlowRun:
    given = {"experiment": {"name": name}}
    run = client.create_flow_run_from_deployment(deployment, parameters=given, state=Pending())
    if worker:
        client.update_flow_run_labels(run.id, {fleet.WORKER: worker})
    client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


@pytest.mark.integration
def test_runs_without_a_sign_are_taken_up_and_others_stay(
    api: str, client: SyncPrefectClient, deployment: UUID
) -> None:
    clock = Clock()
    first, second, dead = (fleet.Watch(api, f"iris-{name}") for name in ("a", "b", "z"))
    for watch in (first, second, dead):
        watch.workers, watch.runs = fleet.Silences(clock), fleet.Silences(clock)
    dead.look()
    runs = {
        "running": begin(client, deployment, "running", dead.name, Running()),
        "pending": begin(client, deployment, "pending", dead.name, Pending()),
        "cancelled": begin(client, deployment, "cancelled", dead.name, Cancelling()),
        "beating": begin(client, deployment, "beating", dead.name, Running()),
        "worker lives": begin(client, deployment, "worker lives", second.name, Running()),
        "completed": begin(client, deployment, "completed", dead.name, Completed()),
    }
    lost = {runs[name].id for name in ("running", "pending", "cancelled")}
    while clock.now <= fleet.SILENCE_S:
        assert first.look() == second.look() == []
        clock.now += 10
        beat(api, [runs["beating"].id])
    wait_for(lambda: fleet._heartbeats(client, [runs["beating"]])[str(runs["beating"].id)])
    assert set(first.look()) == lost
    assert second.look() == []
    assert {name: state_of(client, run.id) for name, run in runs.items()} == {
        "running": "Crashed",
        "pending": "Crashed",
        "cancelled": "Cancelled",
        "beating": "Running",
        "worker lives": "Running",
        "completed": "Completed",
    }
    known = {run.id for run in runs.values()}
    new = [run for run in client.read_flow_runs() if run.id not in known]
    assert sorted(run.parameters["experiment"]["name"] for run in new) == ["pending", "running"]
    assert {run.state_name for run in new} == {"Scheduled"}
    names = {worker.name for worker in client.read_workers_for_work_pool(pool.NAME)}
    assert names == {first.name, second.name}


@pytest.mark.integration
def test_two_workers_that_take_up_a_run_at_once_start_one(client: SyncPrefectClient, deployment: UUID) -> None:
    run = begin(client, deployment, "twice", None, Running())
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: fleet.take_up(client, run.id), range(2)))
    assert len(successors(client, run)) == 1


@pytest.mark.integration
def test_a_run_is_taken_up_three_times(client: SyncPrefectClient, deployment: UUID) -> None:
    first = run = begin(client, deployment, "again", None, Running())
    for number in range(fleet.AGAIN):
        fleet.take_up(client, run.id)
        state = client.read_flow_run(run.id).state
        new = successors(client, first)[-1]
        assert state is not None
        assert state.name == "Crashed"
        assert (state.message or "").endswith(f"flow run {new.id} resumes it ({number + 1} of 3)")
        run = new
        client.set_flow_run_state(run.id, Running(), force=True)
    fleet.take_up(client, run.id)
    assert len(successors(client, first)) == fleet.AGAIN
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert "4 times now" in (state.message or "")


class Machine:
    """A worker and all that it starts, to be lost at once."""

    def __init__(self, folder: Path, api: str, store: Path):
        self.label = Label("IRIS_TEST_MACHINE", uuid.uuid4().hex)
        variables = {**os.environ, **processes.prefect_environment(store, api, CREDENTIALS)}
        variables |= {"PYTHONPATH": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        with (folder / f"{self.label.value}.log").open("a") as log:
            command = [sys.executable, "-c", WORKER]
            start("worker", command, variables, log, self.label, cwd=ROOT, outlives=True)

    def runs(self, run: FlowRun) -> bool:
        """Whether the process of a flow run is one of this machine's."""
        wanted = str(run.id)
        return any(environment(each).get("PREFECT__FLOW_RUN_ID") == wanted for each in self.label.processes())


@contextmanager
def two_machines(folder: Path, api: str, store: Path) -> Iterator[list[Machine]]:
    machines = [Machine(folder, api, store) for _ in range(2)]
    try:
        yield machines
    finally:
        for machine in machines:
            machine.label.kill()


@pytest.mark.integration
def test_a_loop_is_taken_up_when_its_machine_is_lost(
    tmp_path: Path, tiny_model: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two machines, the one that runs a loop is lost while it samples."""
    settings = {
        "generation": {"backend": "transformers", "max_new_tokens": 64, "shard_size": 4},
        "evaluation": {"benchmarks": [], "initial": False, "backend": "hf"},
    }
    store = tmp_path / "store"
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "cache"))
    with server(tmp_path / "server") as api:
        pool.get_or_create(api)
        _deploy(api, tmp_path)  # before workers ask the server each second: SQLite would often refuse it then
        with two_machines(tmp_path, api, tmp_path / "server") as machines, credentials.client(api) as client:
            own = client.read_deployment_by_name("iris/full-loop")
            parameters = {"experiment": small(store, tiny_model, pairs_file, **settings)}
            run = client.create_flow_run_from_deployment(own.id, parameters=parameters)
            wait_for(lambda: written(store), 600)
            (lost,) = [machine for machine in machines if machine.runs(run)]
            lost.label.kill()
            shards = written(store)
            (again,) = wait_for(lambda: successors(client, run))
            ends = [wait_for(lambda each=each: ended(client, each), 600) for each in (run, again)]
            assert [end.state_name for end in ends] == ["Crashed", "Completed"]
            assert len({end.labels[fleet.WORKER] for end in ends}) == 2
            assert shards.items() <= written(store).items()  # none was generated again
    found = Store(store, "small").manifest("iteration-0/generate")
    assert found is not None
    undisturbed = run_stage(GenerateSpec.of(found), tmp_path / "undisturbed", generate)
    assert found.outputs["responses"].digest == undisturbed.outputs["responses"].digest
    versions = MlflowClient(f"sqlite:///{store}/mlflow.db").search_model_versions("name = 'small'")
    assert sorted(int(each.version) for each in versions) == [1, 2]


def _deploy(api: str, folder: Path) -> None:
    variables = {**os.environ, **processes.prefect_environment(folder / "server", api, CREDENTIALS)}
    variables |= {"IRIS_STORE": str(folder), "PWD": str(ROOT)}
    subprocess.run(processes.apply_deployments(), cwd=ROOT, env=variables, check=True, stdin=subprocess.DEVNULL)
