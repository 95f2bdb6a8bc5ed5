"""The work pool `iris` on a Prefect server: made with a limit of one run at a time, freed of runs that were lost."""

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
    """This machine's worker."""
    return f"iris-{socket.gethostname()}"


def make(api: str) -> None:
    """Makes the pool if there is none. One there is stays as it is: its limit may have been changed on purpose.

    The server is to mark runs that are lost, too: workers on other machines may be lost with theirs.
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
    """Whether this machine's worker has reported itself after `since`."""
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
    """Marks runs as crashed that no worker carries any more, so that they do not hold the pool's only place.

    To be called before this machine's worker starts. Where another machine has a worker, nothing is done.

    Returns:
        How many there were.
    """
    wanted = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with credentials.client(api) as client:
        workers = client.read_workers_for_work_pool(NAME, worker_filter=wanted)
        if any(worker.name != worker_name() for worker in workers):
            return 0
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[NAME]))
        found = client.read_flow_runs(work_pool_filter=pool, flow_run_filter=lost.under_way())
        lost.crash(client, [*found, *_parts(client, found)], LOST)
    return len(found)


def _parts(client: SyncPrefectClient, runs: list[FlowRun]) -> list[FlowRun]:
    """The sub-flow runs under way of `runs`, and theirs."""
    if not runs:
        return []
    of = FlowRunFilterParentFlowRunId(any_=[run.id for run in runs])
    parts = client.read_flow_runs(flow_run_filter=lost.under_way(parent_flow_run_id=of))
    return [*parts, *_parts(client, parts)]
