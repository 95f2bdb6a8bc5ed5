"""A Prefect server for the tests of a file or package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.testing.utilities import prefect_test_harness


@contextmanager
def new_server() -> Iterator[None]:
    """A server of its own, which gets what is sent while it runs.

    Prefect keeps what sends events and logs, whatever the server's address: without an end here, what an earlier test
    began would go on sending to a server that is no more.
    """
    with prefect_test_harness(server_startup_timeout=120):
        for sender in (EventsWorker, APILogWorker):
            sender.drain_all(timeout=0)
        yield
