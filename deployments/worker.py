"""The worker, which runs the deployments of prefect.yaml and nothing else: `python -m deployments.worker`.

In Prefect, a deployment says where its code comes from and may run shell commands to get it; a run, a deployment and
the pool may set command, environment and folder. So anyone who can write to the server could run anything here. This
worker refuses runs of other deployments, and runs only what prefect.yaml names, from this checkout.

It runs one at a time. With the other workers of its pool it takes up runs that were lost (`deployments.fleet`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from anyio.abc import TaskStatus
from prefect import Flow
from prefect.client.schemas.objects import Flow as StoredFlow
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.runner import runner
from prefect.settings import get_current_settings
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from deployments import credentials, fleet, pool
from deployments.processes import CHECKOUT
from iris_core.common.errors import ConfigError

CREDENTIALS = {  # the only variables that server, pool, deployment and run may set, for example from Secret blocks
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "PGPASSWORD",
}
ENTRYPOINT_VARIABLE = "PREFECT__FLOW_ENTRYPOINT"  # replaces the deployment's own, pull steps included
HEARTBEAT_VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


class OwnRun(ProcessJobConfiguration):
    """Starts a run of one of this project's deployments; refuses other runs."""

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: StoredFlow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Sets command, folder and environment; of those of pool, deployment and run, only credentials are used.

        Raises:
            ConfigError: the run does not belong to a deployment as prefect.yaml has it.
        """
        entrypoint = own_entrypoint(flow_run, deployment)
        self.env = {name: value for name, value in self.env.items() if name in CREDENTIALS}
        self.command, self.working_dir = None, CHECKOUT
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)
        self.env[ENTRYPOINT_VARIABLE] = entrypoint
        self.env[HEARTBEAT_VARIABLE] = str(fleet.HEARTBEAT_S)


class Worker(ProcessWorker):
    """A worker whose flow runs are taken up again if their process is killed."""

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "iris"  # Prefect's own worker keeps its entry among the types of workers

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Runs a flow to its end."""
        result = await super().run(flow_run, configuration, task_status)
        if result.status_code == -signal.SIGKILL:
            await asyncio.to_thread(_take_up, flow_run.id)
        return result


def own_entrypoint(flow_run: FlowRun, deployment: DeploymentResponse | None) -> str:
    """The flow to run, as `file:function` in this checkout.

    Raises:
        ConfigError: the run does not belong to a deployment as prefect.yaml has it.
    """
    if deployment is None:
        raise ConfigError(f"run {flow_run.name}: {_refusal('it has no deployment')}")
    entrypoint = own_deployments().get(deployment.name)
    if not entrypoint or entrypoint != deployment.entrypoint or not _goes_here(deployment):
        raise ConfigError(f"deployment {deployment.name}: {_refusal('its code differs from prefect.yaml')}")
    for variables in (deployment.job_variables, flow_run.job_variables):
        if not _only_credentials(variables or {}):
            reason = f"it sets job variables other than env: {', '.join(sorted(CREDENTIALS))}"
            raise ConfigError(f"deployment {deployment.name}: {_refusal(reason)}")
    return entrypoint


@cache
def own_deployments() -> dict[str, str]:
    """The entrypoints of the deployments in prefect.yaml, by name."""
    content = yaml.safe_load((CHECKOUT / "deployments" / "prefect.yaml").read_text())
    return {item["name"]: item["entrypoint"] for item in content["deployments"]}


def _goes_here(deployment: DeploymentResponse) -> bool:
    """Whether the only pull step of a deployment is to enter this checkout."""
    match deployment.pull_steps:
        case [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}]:
            only = [{"prefect.deployments.steps.set_working_directory": {"directory": folder}}]
            return deployment.pull_steps == only and Path(folder).resolve() == CHECKOUT.resolve()
    return False


def _only_credentials(variables: dict[str, Any]) -> bool:
    return variables.keys() <= {"env"} and (variables.get("env") or {}).keys() <= CREDENTIALS


def _refusal(reason: str) -> str:
    return f"{reason}; this worker runs only what deployments/prefect.yaml holds: start that, or use another worker"


async def _without_hooks(*args: object, **kwargs: object) -> Flow[[], None]:
    return Flow(lambda: None, name="no hooks")


def _take_up(run_id: UUID) -> None:
    with credentials.client(_api()) as client:
        fleet.take_up(client, run_id)


def _api() -> str:
    return str(get_current_settings().api.url)


async def work() -> None:
    """Runs until a signal stops it."""
    # When a run was cancelled or crashed, the runner would load the run's code into this process to look for hooks, and
    # run its pull steps. This project's flows have no hooks.
    runner.load_flow_from_flow_run = _without_hooks
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    worker = Worker(
        name=pool.worker_name(),
        work_pool_name=pool.NAME,
        limit=1,
        create_pool_if_not_found=False,
        heartbeat_interval_seconds=int(get_current_settings().worker.heartbeat_seconds),
    )
    worker.job_configuration = OwnRun
    fleet.Watch(_api(), worker.name).start()
    await worker.start()


if __name__ == "__main__":
    asyncio.run(work())
