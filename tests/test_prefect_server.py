"""What runs send reaches the server of their own test, whichever servers were there before."""

from __future__ import annotations

from uuid import UUID

import pytest
from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings

from iris_core.common.ports import free_port
from tests.prefect_server import new_server, task_run


@task
def work() -> None:
    """Sends its states."""


@flow
def run() -> UUID:
    """The id of its run."""
    work()
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


@pytest.mark.integration
def test_events_do_not_go_to_a_server_that_is_no_more() -> None:
    ended = SubprocessASGIServer(port=free_port())
    ended.start(timeout=120)
    with temporary_settings({PREFECT_API_URL: ended.api_url}):
        run()
    ended.stop()
    with new_server():
        assert task_run(run()).state_name == "Completed"
