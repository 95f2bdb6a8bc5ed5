"""A Prefect API for `iris run`: the one that is there already, or a server of its own for as long as the loop runs.

The server keeps its runs in the store (`.prefect/`), where `iris up` shows them later.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import httpx

from deployments import processes, services
from iris_core import supervision
from iris_core.errors import ServiceError
from iris_core.launch import LAUNCH_VARIABLE, TELEMETRY_OFF


@contextmanager
def prefect_api(store: Path) -> Iterator[str]:
    """Sets this process's Prefect settings; to be entered before Prefect is imported.

    Args:
        store: the experiment's store.

    Yields:
        The address of the API: PREFECT_API_URL where it is set, that of `iris up` where it runs on `store`, else that
        of a server which ends with this context.

    Raises:
        ServiceError: PREFECT_API_URL is set and does not answer, or the server does not start.
    """
    store = store.expanduser().absolute()
    os.environ.update(TELEMETRY_OFF)
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(store / ".prefect" / "storage"))
    given = os.environ.get("PREFECT_API_URL")
    if given:
        _check(given)
        yield given
        return
    shared = services.running()
    if shared and shared.store == store:
        os.environ.update(processes.prefect_environment(store, shared.api))
        _end_lost_runs(store, shared.api)
        yield shared.api
        return
    port = processes.free_port()
    os.environ.update(processes.prefect_environment(store, f"http://{processes.HOST}:{port}/api"))
    with _server(store, port) as api:
        _end_lost_runs(store, api)
        yield api


@contextmanager
def _server(store: Path, port: int) -> Iterator[str]:
    home = store / ".prefect"
    home.mkdir(parents=True, exist_ok=True)
    api, log = os.environ["PREFECT_API_URL"], home / "server.log"
    command, launch_id = processes.prefect_server(port), uuid.uuid4().hex
    with filelock.FileLock(home / "start.lock"):  # two at once would both make the tables
        with log.open("a") as file:
            # in a session of its own: Ctrl-C is for the loop, which still has to report its end
            environment = {**os.environ, LAUNCH_VARIABLE: launch_id}
            server = supervision.start("prefect-server", command, environment, file)
        try:
            processes.wait_healthy("the Prefect server", f"{api}/health", server, log)
        except BaseException:
            supervision.end(server, LAUNCH_VARIABLE, launch_id)
            raise
    try:
        yield api
    finally:
        supervision.end(server, LAUNCH_VARIABLE, launch_id)


def _end_lost_runs(store: Path, api: str) -> None:
    from deployments import lost  # imports Prefect, which reads its settings then

    lost.end_lost_runs(store, api)


def _check(url: str) -> None:
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(
            f"PREFECT_API_URL: no Prefect server answers at {url} ({error}): start it (`iris up`), correct the variable, "
            "or unset it to run with a server of its own"
        ) from error
