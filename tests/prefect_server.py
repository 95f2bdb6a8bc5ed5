"""A Prefect server for the tests of a file or package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.testing.utilities import prefect_test_harness

from tests.processes import PATIENCE_S, wait_for


@contextmanager
def new_server() -> Iterator[None]:
    """A server of its own, which gets what is sent while it runs.

    Prefect keeps what sends events and logs, whatever the server's address: without an end here, what an earlier test
    began would go on sending to a server that is no more.
    """
    with prefect_test_harness(server_startup_timeout=PATIENCE_S):
        for sender in (EventsWorker, APILogWorker):
            sender.drain_all(timeout=0)
        yield


def task_run(flow_run: UUID) -> TaskRun:
    """The flow run's only task run. Its states reach the server as events, a moment later."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    with get_client(sync_client=True) as client:

        def finished() -> list[TaskRun]:
            runs = client.read_task_runs(flow_run_filter=wanted)
            return [run for run in runs if run.state is not None and run.state.is_final()]

        return wait_for(finished)[0]
