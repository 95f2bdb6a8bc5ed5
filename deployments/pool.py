"""The work pool `iris` on a Prefect server, and its workers."""

from __future__ import annotations

import datetime
import secrets
import socket

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from deployments import credentials, lost

NAME = "iris"
WORKERS = "iris-"  # how the names of workers begin


def worker_name() -> str:
    """A new name for a worker of this machine; it names one process, so that its runs are lost when that is gone."""
    return f"{_machine()}{secrets.token_hex(3)}"


def get_or_create(api: str) -> None:
    """Creates the pool if there is none; an existing pool keeps its settings, which the user may have changed.

    It also lets the server mark lost runs, for when no worker is left to do so.
    """
    wanted = WorkPoolCreate(
        name=NAME,
        type="process",
        description="Self-play loops; each worker runs one at a time",
        base_job_template=ProcessWorker.get_default_base_job_template(),
    )
    with credentials.client(api) as client:
        try:
            client.create_work_pool(wanted)
        except ObjectAlreadyExists:
            pass
    lost.watch(api)


def online(api: str, since: datetime.datetime) -> bool:
    """Whether a worker of this machine has sent a heartbeat after `since`."""
    with credentials.client(api) as client:
        return any(
            worker.name.startswith(_machine()) and (worker.last_heartbeat_time or since) > since
            for worker in client.read_workers_for_work_pool(NAME)
        )


def ready(api: str) -> bool:
    """Whether a worker has asked for runs since the pool's deployments were applied."""
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[NAME]))
    with credentials.client(api) as client:
        return all(each.status == "READY" for each in client.read_deployments(work_pool_filter=pool))


def _machine() -> str:
    """How the names of this machine's workers begin."""
    return f"{WORKERS}{socket.gethostname()}-"
