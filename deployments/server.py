"""Gives `iris run` a Prefect API: one that exists, or a server that is started for as long as the loop runs.

The server that is started keeps its runs in the store (`.prefect/`), where `iris up` shows them later, and is started
again if it dies. If another server stops answering, the loop waits for it (`deployments.outage`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import httpx

from deployments import credentials, processes
from deployments.outage import Outage
from deployments.running import Services, running
from deployments.services import MANY_RETRIES
from iris_core.common.errors import ServiceError
from iris_core.common.ports import free_port
from iris_core.execution import supervision
from iris_core.execution.launch import TELEMETRY_OFF

MAX_STARTS = 4


@contextmanager
def prefect_api(store: Path, outage: Outage) -> Iterator[str]:
    """Sets this process's Prefect settings; enter it before Prefect is imported.

    Args:
        store: the experiment's store.
        outage: watches whether the API answers.

    Yields:
        The address of the API: PREFECT_API_URL if it is set, that of `iris up` if it runs on `store`, else that of a
        server which ends with this context.

    Raises:
        ServiceError: PREFECT_API_URL is set and does not answer, or the server does not start.
        ConfigError: the credentials of `iris up` are no longer those of its server.
    """
    store = store.expanduser().absolute()
    os.environ.update(TELEMETRY_OFF)
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(store / ".prefect" / "storage"))
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", MANY_RETRIES)
    if given := os.environ.get("PREFECT_API_URL"):
        server = _given(given, outage)
    elif (services := running()) and services.store == store:
        server = _shared(services, outage)
    else:
        server = _own(store, outage)
    with server as api:
        _end_lost_runs(store, api)
        yield api


@contextmanager
def _given(api: str, outage: Outage) -> Iterator[str]:
    """The server that PREFECT_API_URL names."""
    _check(api, _set_credentials(api))
    with outage.watched(api):
        _watch(api)
        yield api


@contextmanager
def _shared(services: Services, outage: Outage) -> Iterator[str]:
    """The server of `iris up`."""
    api = services.api
    credentials.check(api)
    os.environ.update(processes.prefect_environment(services.store, api, credentials.keep(api)))
    with outage.watched(api):
        yield api


@contextmanager
def _own(store: Path, outage: Outage) -> Iterator[str]:
    """A server of this process, which ends with the block."""
    api = f"http://{processes.HOST}:{free_port()}/api"
    os.environ.update(processes.prefect_environment(store, api, credentials.make()))
    server = _Server(store, api)
    try:
        server.start()
        with outage.watched(api, server.revive):
            yield api
    finally:
        server.end()


class _Server:
    """A Prefect server that this process starts and ends.

    Args:
        store: where it keeps its runs.
        api: its address, with a free port.
    """

    def __init__(self, store: Path, api: str):
        self.home, self.api = store / ".prefect", api
        self.label = supervision.Label.new()
        self.process: subprocess.Popen[str] | None = None
        self.starts = 0

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            ServiceError: it does not answer.
        """
        self.starts += 1
        processes.private_folder(self.home)
        log, port = self.home / "server.log", int(httpx.URL(self.api).port or 0)
        with filelock.FileLock(self.home / "start.lock"):  # two at once would both create the tables
            with log.open("a") as file:
                # in a session of its own: Ctrl-C must end the loop only, which still has to report its end
                command = processes.prefect_server(port)
                self.process = supervision.start("prefect-server", command, os.environ, file, self.label)
            processes.wait_healthy("the Prefect server", f"{self.api}/health", self.process, log)

    def revive(self) -> bool:
        """Starts it again if it has ended. Returns whether it had.

        Raises:
            ServiceError: it does not start, or has ended too often.
        """
        if self.process is None or self.process.poll() is None:
            return False
        if self.starts == MAX_STARTS:
            log = self.home / "server.log"
            raise ServiceError(f"the Prefect server has ended {MAX_STARTS} times ({log} says why): run again to resume")
        self.end()
        self.start()
        return True

    def end(self) -> None:
        """Ends it and whatever it has started."""
        if self.process is not None:
            supervision.end(self.process, self.label)


def _watch(api: str) -> None:
    from deployments import lost  # imports Prefect, which then reads its settings

    lost.watch(api)


def _end_lost_runs(store: Path, api: str) -> None:
    from deployments import lost  # imports Prefect, which then reads its settings

    lost.end_lost_runs(store, api)


def _set_credentials(url: str) -> tuple[str, str] | None:
    """Lets Prefect send the credentials of the server at `url`; returns user and password, if it has any."""
    known = credentials.of(url)
    if not known:
        return None
    os.environ[processes.AUTH_VARIABLE] = known
    user, _, password = known.partition(":")
    return user, password


def _check(url: str, login: tuple[str, str] | None) -> None:
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
        answer = httpx.get(f"{url.rstrip('/')}/admin/version", auth=login, timeout=5)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(
            f"PREFECT_API_URL: no Prefect server answers at {url} ({error}): start it (`iris up`), correct the "
            "variable, or unset it: then `iris run` starts a server"
        ) from error
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise ServiceError(
            f"{processes.AUTH_VARIABLE}: the Prefect server at {url} refuses "
            f"{'what it is set to' if login else 'calls without credentials'}: set it to the server's user:password"
        )
