"""The work pool `iris` on a Prefect server: made with a limit of one run at a time, freed of runs that were lost."""

from __future__ import annotations

import datetime
import socket

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterStatus,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

NAME = "iris"
LOST = "its worker ended; run again to resume"
UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def worker_name() -> str:
    """This machine's worker."""
    return f"iris-{socket.gethostname()}"


def make(api: str) -> None:
    """Makes the pool if there is none. One there is stays as it is: its limit may have been changed on purpose."""
    wanted = WorkPoolCreate(
        name=NAME,
        type="process",
        description="Self-play loops on this machine",
        base_job_template=ProcessWorker.get_default_base_job_template(),
        concurrency_limit=1,
    )
    with SyncPrefectClient(api) as client:
        try:
            client.create_work_pool(wanted)
        except ObjectAlreadyExists:
            pass


def online(api: str, since: datetime.datetime) -> bool:
    """Whether this machine's worker has reported itself after `since`."""
    with SyncPrefectClient(api) as client:
        return any(
            worker.name == worker_name() and (worker.last_heartbeat_time or since) > since
            for worker in client.read_workers_for_work_pool(NAME)
        )


def end_lost_runs(api: str) -> int:
    """Marks runs as crashed that no worker carries any more, so that they do not hold the pool's only place.

    To be called before this machine's worker starts. Where another machine has a worker, nothing is done.

    Returns:
        How many there were.
    """
    wanted = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with SyncPrefectClient(api) as client:
        workers = client.read_workers_for_work_pool(NAME, worker_filter=wanted)
        if any(worker.name != worker_name() for worker in workers):
            return 0
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[NAME]))
        lost = client.read_flow_runs(work_pool_filter=pool, flow_run_filter=_under_way())
        for run in [*lost, *_parts(client, lost)]:
            client.set_flow_run_state(run.id, Crashed(message=LOST), force=True)
    return len(lost)


def _under_way(parents: list[FlowRun] | None = None) -> FlowRunFilter:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))
    if parents is None:
        return FlowRunFilter(state=state)
    of = FlowRunFilterParentFlowRunId(any_=[run.id for run in parents])
    return FlowRunFilter(state=state, parent_flow_run_id=of)


def _parts(client: SyncPrefectClient, parents: list[FlowRun]) -> list[FlowRun]:
    return client.read_flow_runs(flow_run_filter=_under_way(parents)) if parents else []
