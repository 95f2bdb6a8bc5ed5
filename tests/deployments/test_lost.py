"""Lost flow runs on real servers: runs of a killed process are marked, those of a live process are not."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from uuid import UUID

import pytest
from prefect import Flow, flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import get_current_settings
from prefect.states import Cancelling, Crashed, Running, State

from deployments import credentials, lost, processes
from iris_core.common.ports import free_port
from iris_core.config import TrackingPart
from tests.processes import PATIENCE_S, wait_for

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
CREDENTIALS = "user:password"
LOOP = """
import sys, time
from pathlib import Path
from prefect import flow, tags, task
from deployments.lost import TAG, alive

@task
def stage():
    Path(sys.argv[2]).touch()
    while not Path(sys.argv[2] + ".end").exists():
        time.sleep(0.1)

@flow
def part():
    stage()

@flow(flow_run_name=Path(sys.argv[2]).name)
def loop(experiment):
    part()

with alive(Path(sys.argv[1])) as tag, tags(TAG, tag):
    loop({"store": sys.argv[1]})
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("server")) as url:
        yield url


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server that keeps its history in `folder`."""
    port = free_port()
    url = f"http://{processes.HOST}:{port}/api"
    environment = {**os.environ, **processes.prefect_environment(folder, url, CREDENTIALS)}
    folder.mkdir(exist_ok=True)
    with (folder / "server.log").open("w") as log:
        command = processes.prefect_server(port)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        processes.wait_healthy("Prefect", f"{url}/health", process, folder / "server.log")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(processes.AUTH_VARIABLE, CREDENTIALS)
            yield url
    finally:
        process.terminate()
        process.wait()


def start(store: Path, api: str, name: str) -> subprocess.Popen[bytes]:
    """Starts a process, and waits until it is inside a task of a sub-flow."""
    (store / "loop.py").write_text(LOOP)
    environment = {**os.environ, **processes.prefect_environment(store, api, CREDENTIALS)}
    environment["PYTHONPATH"] = str(ROOT)
    begun = store / name
    process = subprocess.Popen([sys.executable, str(store / "loop.py"), str(store), str(begun)], env=environment)
    wait_for(lambda: begun.exists() or process.poll() is not None)
    assert process.poll() is None
    return process


def states(api: str, name: str) -> dict[str, str]:
    """The states of the flow run `name`, its sub-flow run, and the task runs of both, by name."""
    with credentials.client(api) as client:
        flows, tasks = client.read_flow_runs(), client.read_task_runs()
    tag = next(run.tags for run in flows if run.name == name)
    own = [run for run in [*flows, *tasks] if run.tags == tag]
    return {run.name.split("-")[0]: run.state_name or "" for run in own if run.name != name} | {
        "loop": next(run.state_name or "" for run in flows if run.name == name)
    }


def wait_for_states(api: str, name: str) -> None:
    """Waits until the server knows the run, its sub-flow (also as a task) and the task, which reach it as events."""
    until = time.monotonic() + PATIENCE_S
    while list((found := states(api, name)).values()) != ["Running"] * 4:
        assert time.monotonic() < until, found
        time.sleep(0.1)


def test_runs_of_a_killed_process_are_ended_and_those_of_a_live_one_are_not(api: str, tmp_path: Path) -> None:
    killed, live = start(tmp_path, api, "killed"), start(tmp_path, api, "live")
    assert lost.end_lost_runs(tmp_path, api) == 0
    wait_for_states(api, "killed")
    wait_for_states(api, "live")
    killed.kill()
    killed.wait()
    assert lost.end_lost_runs(tmp_path, api) == 2
    assert set(states(api, "killed").values()) == {"Crashed"}
    assert set(states(api, "live").values()) == {"Running"}
    (tmp_path / "live.end").touch()
    assert live.wait(PATIENCE_S) == 0
    assert states(api, "live")["loop"] == "Completed"
    assert list((tmp_path / ".prefect" / "alive").iterdir()) == []
    assert lost.end_lost_runs(tmp_path, api) == 0


def test_a_lost_run_is_marked_on_its_own_server_only_and_from_any_store(api: str, tmp_path: Path) -> None:
    killed = start(tmp_path, api, "elsewhere")
    killed.kill()
    killed.wait()
    with server(tmp_path / "other") as other:
        assert lost.end_lost_runs(tmp_path, other) == 0
    assert states(api, "elsewhere")["loop"] == "Running"
    assert lost.end_lost_runs(tmp_path / "other", api) == 2
    assert states(api, "elsewhere")["loop"] == "Crashed"


def test_the_lock_of_a_run_that_has_reported_its_end_goes(api: str, tmp_path: Path) -> None:
    with credentials.client(api) as client:
        client.create_flow_run(named, tags=["iris", "iris-run-aaaaaaaa"], state=Crashed())
    lock = tmp_path / ".prefect" / "alive" / "iris-run-aaaaaaaa"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert lost.end_lost_runs(tmp_path, api) == 0
    assert not lock.exists()


def test_the_lock_of_a_run_that_never_was_goes_after_a_day(api: str, tmp_path: Path) -> None:
    new, old = (tmp_path / ".prefect" / "alive" / f"iris-run-0000000{n}" for n in range(2))
    new.parent.mkdir(parents=True)
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    lost.end_lost_runs(tmp_path, api)
    assert [new] == list(new.parent.iterdir())


@task
def stage_of_a_run() -> None:
    """A task whose runs only have the states that a test gives them."""


@flow(name="iris")
def named(experiment: dict[str, str]) -> None:
    """A flow whose runs only have the states that a test gives them."""


def run_in(client: SyncPrefectClient, state: State, **parameters: str) -> UUID:
    given = {"experiment": parameters}
    return client.create_flow_run(named, parameters=given, tags=["iris"], state=state).id


def state_of(client: SyncPrefectClient, run: UUID) -> str:
    state = client.read_flow_run(run).state
    assert state is not None
    return state.name or ""


def beat(api: str, runs: list[UUID]) -> None:
    """Sends heartbeats of flow runs, as their processes do."""
    for run in runs:
        related = {"prefect.resource.id": "prefect.flow.x", "prefect.resource.role": "flow"}
        event = {
            "event": "prefect.flow-run.heartbeat",
            "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
            "related": [{**related, "prefect.resource.name": "iris"}],
            "id": str(uuid.uuid4()),
        }
        with credentials.client(api) as client:
            client.request("POST", "/events", json=[event]).raise_for_status()


def test_the_server_marks_a_run_whose_heartbeat_stops(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, "MAX_SILENCE", datetime.timedelta(seconds=20))
    lost.watch(api)
    lost.watch(api)
    with credentials.client(api) as client:
        assert len(client.read_automations()) == 2
        silent, lively = (run_in(client, Running()) for _ in range(2))
        begun = time.monotonic()
        while state_of(client, silent) == "Running":
            waited = time.monotonic() - begun
            # beats from before the server has loaded the automations do not count: there are some again after a while
            beat(api, [silent, lively] if waited % 100 < 8 else [lively])
            assert waited < 2 * PATIENCE_S
            time.sleep(1)
        assert state_of(client, silent) == "Crashed"
        assert state_of(client, lively) == "Running"


def test_an_automation_of_an_earlier_version_gets_the_flows_that_are_new(
    api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user has changed in it stays."""
    with credentials.client(api) as client:
        for known in client.read_automations():
            client.delete_automation(known.id)
        monkeypatch.setattr(lost, "FLOWS", ["iris"])
        monkeypatch.setattr(lost, "MAX_START", datetime.timedelta(hours=1))
        lost.watch(api)
        monkeypatch.undo()
        client.pause_automation(client.read_automations()[0].id)
        before = {each.id: each.model_dump(mode="json") for each in client.read_automations()}
        lost.watch(api)
        after = {each.id: each.model_dump(mode="json") for each in client.read_automations()}
        assert sorted(each["enabled"] for each in before.values()) == [False, True]
        for each in before.values():
            assert each["trigger"]["match_related"]["prefect.resource.name"] == ["iris"]
            each["trigger"]["match_related"]["prefect.resource.name"] = lost.FLOWS
        assert after == before


def test_a_run_that_waits_for_its_server_is_not_taken_for_lost() -> None:
    """A heartbeat may come just before an outage, the next just before its end; one more may be late."""
    patience = TrackingPart().patience
    beats = get_current_settings().flows.heartbeat_frequency
    assert beats is not None
    assert datetime.timedelta(seconds=patience + 3 * beats) < lost.MAX_SILENCE


def test_a_cancelled_run_that_is_lost_ends_as_cancelled_and_tasks_end_with_their_run(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "TASK_DELAY", datetime.timedelta())
    with credentials.client(api) as client:
        cancelled = run_in(client, Cancelling())
        lost.crash(client, [client.read_flow_run(cancelled)], "lost")
        assert state_of(client, cancelled) == "Cancelled"
        marked = run_in(client, Running())
        stage = client.create_task_run(stage_of_a_run, marked, dynamic_key="0", name="stage", state=Running())
        client.set_flow_run_state(marked, Crashed(), force=True)
        lost.end_lost_runs(tmp_path, api)
        assert client.read_task_run(stage.id).state_name == "Crashed"


@pytest.mark.parametrize("tag", ["../x", "iris-run-01234567/../../x", "iris-run-01234567\n"])
def test_a_tag_that_names_no_lock_leads_to_no_file(api: str, tmp_path: Path, tag: str) -> None:
    with credentials.client(api) as client:
        run = client.create_flow_run(named, tags=["iris", tag], state=Running())
        (tmp_path / ".prefect" / "alive" / "iris-run-01234567").mkdir(parents=True)
        (tmp_path / ".prefect" / "x").write_text("kept")
        assert lost.end_lost_runs(tmp_path, api) == 0
        assert state_of(client, run.id) == "Running"
    assert (tmp_path / ".prefect" / "x").read_text() == "kept"


def test_every_flow_is_looked_for() -> None:
    modules = map(import_module, ("flows.compare", "flows.evaluation", "flows.iris", "flows.iteration"))
    names = {each.name for module in modules for each in vars(module).values() if isinstance(each, Flow)}
    assert names == set(lost.FLOWS)
