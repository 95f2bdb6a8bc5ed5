"""Flow runs of a process that was killed, beside one that lives, in the history of a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments import lost, processes

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
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
def loop():
    part()

with alive(Path(sys.argv[1])) as tag, tags(TAG, tag):
    loop()
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[str]:
    """A server that keeps its history in `tmp_path`."""
    port = processes.free_port()
    url = f"http://{processes.HOST}:{port}/api"
    environment = {**os.environ, **processes.prefect_environment(tmp_path, url)}
    with (tmp_path / "server.log").open("w") as log:
        command = processes.prefect_server(port)
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    processes.wait_healthy("Prefect", f"{url}/health", server, tmp_path / "server.log")
    yield url
    server.terminate()
    server.wait()


def start(store: Path, api: str, name: str) -> subprocess.Popen[bytes]:
    """A process in the middle of its flow's sub-flow's task."""
    (store / "loop.py").write_text(LOOP)
    environment = {**os.environ, **processes.prefect_environment(store, api)}
    environment["PYTHONPATH"] = str(ROOT)
    begun = store / name
    process = subprocess.Popen(
        [sys.executable, str(store / "loop.py"), str(store), str(begun)], env=environment
    )
    until = time.monotonic() + 60
    while not begun.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    return process


def states(api: str, name: str) -> dict[str, str]:
    """By name: of the flow run `name`, its sub-flow run, and the task runs of both."""
    with SyncPrefectClient(api) as client:
        flows, tasks = client.read_flow_runs(), client.read_task_runs()
    tag = next(run.tags for run in flows if run.name == name)
    own = [run for run in [*flows, *tasks] if run.tags == tag]
    return {run.name.split("-")[0]: run.state_name or "" for run in own if run.name != name} | {
        "loop": next(run.state_name or "" for run in flows if run.name == name)
    }


def test_runs_of_a_killed_process_are_ended_and_those_of_a_live_one_are_not(
    api: str, tmp_path: Path
) -> None:
    killed, live = start(tmp_path, api, "killed"), start(tmp_path, api, "live")
    assert lost.end_lost_runs(tmp_path, api) == 0
    time.sleep(2)  # the task's state reaches the server as an event
    killed.kill()
    killed.wait()
    assert lost.end_lost_runs(tmp_path, api) == 2
    assert set(states(api, "killed").values()) == {"Crashed"}
    assert set(states(api, "live").values()) == {"Running"}
    (tmp_path / "live.end").touch()
    assert live.wait(60) == 0
    assert states(api, "live")["loop"] == "Completed"
    assert list((tmp_path / ".prefect" / "alive").iterdir()) == []
    assert lost.end_lost_runs(tmp_path, api) == 0
