"""`iris up` and `iris down` with real servers and a real worker: deployments, reuse, cancelling, and a clean end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from deployments import credentials, fleet, pool, processes, services
from deployments.running import Services, running
from deployments.services import CHECKOUT
from iris_core.common.errors import ConfigError
from iris_core.config import Experiment, parse_experiment
from iris_core.execution.supervision import LAUNCH_VARIABLE
from iris_core.pipeline.stages import OF_LOOP
from tests.processes import PATIENCE_S, above, below, command_line, environment


def small(store: Path, model: Path, pairs: Path, **settings: Any) -> dict[str, Any]:
    """The parameters of a real loop that takes a minute."""
    return {
        "name": "small",
        "iterations": 1,
        "store": str(store),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"path": str(pairs), "heldout": 6, "answer_pattern": "Answer: (.+)"},
        "generation": {"backend": "transformers", "max_new_tokens": 12, "shard_size": 8},
        "training": {
            "epochs": 1,
            "batch_size": 4,
            "tokens_per_batch": 256,
            "learning_rate": 1e-3,
            "optimizer": "adamw",
        },
        "evaluation": {"benchmarks": [], "backend": "hf"},  # the held-out answers alone
        **settings,
    }


def endless(store: Path, model: Path, pairs: Path, name: str) -> dict[str, Any]:
    """The parameters of a loop that samples one shard for as long as a test looks at it."""
    generation = {"backend": "transformers", "max_new_tokens": 700, "shard_size": 24}
    evaluation = {"benchmarks": [], "initial": False, "backend": "hf"}
    return small(store, model, pairs, name=name, generation=generation, evaluation=evaluation)


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """Waits for `what` a server says, which is not asked too often."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            pytest.fail(f"still waiting after {seconds} s")
        time.sleep(0.2)
    return found


def start(client: SyncPrefectClient, parameters: dict[str, Any]) -> FlowRun:
    deployment = client.read_deployment_by_name("iris/full-loop")
    return client.create_flow_run_from_deployment(deployment.id, parameters={"experiment": parameters})


def ended(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    found = client.read_flow_run(run.id)
    return found if found.state is not None and found.state.is_final() else None


def successors(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    """The flow runs that were started in place of a lost one, in order."""
    keys = {f"{fleet.KEY}{run.id}-{number}" for number in range(1, 9)}
    found = [each for each in client.read_flow_runs() if each.idempotency_key in keys]
    return sorted(found, key=lambda each: each.idempotency_key or "")


def stages_of(client: SyncPrefectClient, run: FlowRun) -> dict[str, str]:
    """State names of the stages of a run and of its iterations, by task run name."""
    iterations = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run.id]}})
    )
    ids = FlowRunFilterId(any_=[run.id, *(child.id for child in iterations)])
    found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=ids))
    return {task.name: task.state_name or "" for task in found if task.name.split(" ")[0] in OF_LOOP}


def written(store: Path) -> dict[Path, int]:
    """The shards of every generation in the store, and when they were written."""
    shards = store.glob("objects/generate-*/responses/shard-*.parquet")
    return {path: path.stat().st_mtime_ns for path in shards}


def launched(up: Services) -> list[psutil.Process]:
    """Processes that belong to the launch of a stage under these services."""
    return [process for process in up.processes() if LAUNCH_VARIABLE in environment(process)]


def stages(up: Services) -> list[psutil.Process]:
    """The stages that generate."""
    return [process for process in launched(up) if "iris_core.generate" in command_line(process)]


def flow_of(stage: psutil.Process) -> psutil.Process:
    """The process of the flow run that a stage belongs to."""
    return next(each for each in above(stage) if "prefect.engine" in command_line(each))


@pytest.mark.unit
def test_default_parameters_are_an_experiment() -> None:
    content = yaml.safe_load((CHECKOUT / "deployments" / "prefect.yaml").read_text())
    by_name = {item["name"]: item for item in content["deployments"]}
    recipes = {path.stem for path in (CHECKOUT / "deployments" / "recipes").glob("*.yaml")} - {"demo", "sql-demo"}
    assert set(by_name) == {"full-loop", "objectives", "benchmarks", "text-to-sql", "weekly", *recipes}
    assert by_name["full-loop"]["entrypoint"] == "flows/iris.py:iris"
    assert by_name["objectives"]["entrypoint"] == "flows/compare.py:compare"
    for item in by_name.values():
        parameters = yaml.safe_dump(item["parameters"]["experiment"])
        assert parse_experiment(yaml.safe_load(parameters))
        assert not re.search(r"[: ]/\w", parameters)  # no absolute path


@pytest.mark.unit
def test_taken_port_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind((processes.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is taken.*--prefect-port"):
            processes.check_port(port, "prefect-port")


@pytest.mark.integration
def test_up_again_keeps_what_runs(up: Services) -> None:
    again = services.up(up.store, up.prefect_port, up.mlflow_port)
    assert again == up
    with pytest.raises(ConfigError, match="iris down"):
        services.up(up.store / "other", up.prefect_port, up.mlflow_port)


@pytest.mark.integration
def test_deployments_show_a_described_form(up: Services) -> None:
    with credentials.client(up.api) as client:
        loop = client.read_deployment_by_name("iris/full-loop")
        client.read_deployment_by_name("iris-evaluate/benchmarks")
        client.read_deployment_by_name("iris-compare/objectives")
        assert client.read_work_pool(pool.NAME).concurrency_limit is None
    Experiment.model_validate(loop.parameters["experiment"])
    assert loop.parameters["experiment"]["store"] == str(up.store)
    schema = str(loop.parameter_openapi_schema)
    assert "Sampling temperature; 1 samples the opponent itself." in schema
    assert "exclusiveMinimum" in schema


@pytest.mark.integration
def test_cancelled_run_leaves_no_process_and_a_rerun_resumes_and_is_reused(
    up: Services, tiny_model: Path, pairs_file: Path
) -> None:
    slow = {"backend": "transformers", "max_new_tokens": 300, "shard_size": 2}
    parameters = small(up.store, tiny_model, pairs_file, name="cancelled", generation=slow)
    with credentials.client(up.api) as client:
        first = start(client, parameters)
        wait_for(lambda: written(up.store))
        assert launched(up)
        client.set_flow_run_state(first.id, Cancelling())
        state = wait_for(lambda: ended(client, first)).state
        assert state.type.value == "CANCELLED"
        assert launched(up) == []
        shards = written(up.store)
        assert 0 < len(shards) < 12
        second = start(client, parameters)
        assert wait_for(lambda: ended(client, second), 600).state.name == "Completed"
        assert shards.items() <= written(up.store).items()  # none was generated again
        assert stages_of(client, second)["prepare"] == "Reused"
        assert stages_of(client, second)["generate · iteration 0"] == "Completed"
        third = start(client, parameters)
        assert wait_for(lambda: ended(client, third)).state.name == "Completed"
        states = stages_of(client, third)
        assert len(states) == 3 + 5  # prepare, the initial model's two, five of the iteration
        assert set(states.values()) == {"Reused"}
        keys = {artifact.key for artifact in client.read_artifacts()}
    shown = {"plan", "iterations", "report", "initial-model", "iteration-0", "iteration-0-train-progress"}
    assert {f"cancelled-{name}" for name in shown} <= keys


@pytest.mark.integration
def test_death_of_the_flow_process_ends_its_stage_and_loads_nothing(
    up: Services, tiny_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    parameters = endless(up.store, tiny_model, pairs_file, "killed")
    with credentials.client(up.api) as client:
        run = start(client, parameters)
        stage = wait_for(lambda: stages(up))[0]
        own = client.read_deployment_by_name("iris/full-loop")
        shell = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {tmp_path}/ran"}}
        client.update_deployment(own.id, DeploymentUpdate(pull_steps=[shell]))
        flow_of(stage).kill()
        assert wait_for(lambda: ended(client, run)).state.type.value == "CRASHED"
        wait_for(lambda: not launched(up))
        (again,) = wait_for(lambda: successors(client, run))
        assert "its code differs" in wait_for(lambda: ended(client, again)).state.message
        time.sleep(2)  # the worker looks for hooks after that
        client.update_deployment(own.id, DeploymentUpdate(pull_steps=own.pull_steps))
    assert not (tmp_path / "ran").exists()


@pytest.mark.integration
def test_runs_of_a_killed_worker_end_and_the_next_up_takes_them_up(
    up: Services, tiny_model: Path, pairs_file: Path
) -> None:
    """The flow's process is suspended, as on a machine too busy to let it report its end before it is killed."""
    parameters = endless(up.store, tiny_model, pairs_file, "orphaned")
    with credentials.client(up.api) as client:
        run = start(client, parameters)
        stage = wait_for(lambda: stages(up))[0]
        supervisor = next(each for each, name in up.supervisors().items() if name == "worker")
        (worker,) = (each for each in below(supervisor.pid) if "deployments.worker" in command_line(each))
        flow_of(stage).suspend()
        worker.kill()
        wait_for(lambda: not launched(up) and running() is None)
        services.up(up.store, up.prefect_port, up.mlflow_port)
        assert wait_for(lambda: ended(client, run)).state.type.value == "CRASHED"
        (again,) = wait_for(lambda: successors(client, run))
        assert again.parameters == run.parameters
        wait_for(lambda: client.read_flow_run(again.id).run_count)
        client.set_flow_run_state(again.id, Cancelling())
        assert wait_for(lambda: ended(client, again)).state.type.value == "CANCELLED"


@pytest.mark.integration
def test_down_leaves_nothing_even_if_settings_have_changed(
    up: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, last = processes.home(), running()
    assert last is not None
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path))
    assert running() is None
    assert services.down()
    assert up.processes() == []
    assert last.processes() == []
    assert os.listdir(logs)  # they stay
    assert not services.down()
