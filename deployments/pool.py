"""The work pool `iris` on a Prefect server: creates it with a limit of one run at a time, and frees it of lost runs."""

from __future__ import annotations

import datetime
import socket

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilterParentFlowRunId,
    WorkerFilter,
    WorkerFilterStatus,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from deployments import credentials, lost

NAME = "iris"
LOST = "its worker ended; run again to resume"


def worker_name() -> str:
    """The name of this machine's worker."""
    return f"iris-{socket.gethostname()}"


def get_or_create(api: str) -> None:
    """Creates the pool if there is none; an existing pool keeps its limit, which the user may have changed.

    It also lets the server mark lost runs, because workers on other machines may be lost with their runs.
    """
    wanted = WorkPoolCreate(
        name=NAME,
        type="process",
        description="Self-play loops on this machine",
        base_job_template=ProcessWorker.get_default_base_job_template(),
        concurrency_limit=1,
    )
    with credentials.client(api) as client:
        try:
            client.create_work_pool(wanted)
        except ObjectAlreadyExists:
            pass
    lost.watch(api)


def online(api: str, since: datetime.datetime) -> bool:
    """Whether this machine's worker has sent a heartbeat after `since`."""
    with credentials.client(api) as client:
        return any(
            worker.name == worker_name() and (worker.last_heartbeat_time or since) > since
            for worker in client.read_workers_for_work_pool(NAME)
        )


def ready(api: str) -> bool:
    """Whether a worker has asked for runs since the pool's deployments were applied."""
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[NAME]))
    with credentials.client(api) as client:
        return all(each.status == "READY" for each in client.read_deployments(work_pool_filter=pool))


def end_lost_runs(api: str) -> int:
    """Marks runs as crashed that no worker runs any more, so that they do not occupy the pool's only slot.

    Call it before this machine's worker starts. If another machine has a worker, nothing is done.

    Returns:
        How many there were.
    """
    wanted = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with credentials.client(api) as client:
        workers = client.read_workers_for_work_pool(NAME, worker_filter=wanted)
        if any(worker.name != worker_name() for worker in workers):
            return 0
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[NAME]))
        found = client.read_flow_runs(work_pool_filter=pool, flow_run_filter=lost.unfinished())
        lost.crash(client, [*found, *_sub_runs(client, found)], LOST)
    return len(found)


def _sub_runs(client: SyncPrefectClient, runs: list[FlowRun]) -> list[FlowRun]:
    """The unfinished sub-flow runs of `runs`, and theirs."""
    if not runs:
        return []
    of = FlowRunFilterParentFlowRunId(any_=[run.id for run in runs])
    found = client.read_flow_runs(flow_run_filter=lost.unfinished(parent_flow_run_id=of))
    return [*found, *_sub_runs(client, found)]
