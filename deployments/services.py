"""Starts and stops the services of `iris up`: a Prefect server, an MLflow server, and a worker with the deployments.

Each service is a process with a log file of its own, below a supervisor (`iris_core.execution.supervision`) that ends
whatever the service has started. `deployments.running` finds them again.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from deployments import credentials, ends, processes
from deployments.processes import (
    CHECKOUT,
    START_S,
    check_port,
    end_of,
    home,
    prefect_environment,
    private_folder,
    wait_healthy,
)
from deployments.running import Services, of_this_cache, of_this_user, running
from iris_core.common.errors import ConfigError, ServiceError
from iris_core.execution import supervision
from iris_core.execution.supervision import GRACE_S, terminate

RUN_GRACE_S = 30.0
# how often Prefect's client tries again, with pauses that double
MANY_RETRIES = "9"  # 17 minutes
FEW_RETRIES = "2"  # 6 seconds

Echo = Callable[[str], None]


def up(store: Path, prefect_port: int = 4200, mlflow_port: int = 5000, echo: Echo = print) -> Services:
    """Starts the services on `store`, or takes those that run, and applies the deployments.

    Args:
        store: the store; its folder `.prefect` and its `mlflow.db` hold the data of the servers.
        prefect_port: of the Prefect server.
        mlflow_port: of the MLflow server.
        echo: called with each message.

    Raises:
        ConfigError: services run on another store or with other credentials, a port is taken, or a folder cannot be
            written.
        ServiceError: a service does not start, with the end of its log; or the Prefect server ended meanwhile.
    """
    if prefect_port == mlflow_port:
        raise ConfigError(
            f"port {prefect_port} is asked for twice: choose another with --prefect-port or --mlflow-port"
        )
    services = Services(
        cache=home().parent,
        checkout=CHECKOUT,
        store=store.expanduser().absolute(),
        prefect_port=prefect_port,
        mlflow_port=mlflow_port,
        launch_id=uuid.uuid4().hex,
    )
    with _exclusive(echo), ends.explained(services.store, lambda: services.api):
        return _reuse(services, echo) or _start_all(services, echo)


def down(echo: Echo = print) -> bool:
    """Ends the services and everything they started, flow runs included. Returns whether there were any.

    If none was started with this IRIS_CACHE, those of this checkout are ended: the variable, or HOME, has changed.
    """
    with _exclusive(echo):
        found = of_this_cache() or [each for each in of_this_user() if each.checkout == CHECKOUT]
        for services in found:
            _end(services, echo)
    if not found:
        echo("nothing is running")
    return bool(found)


def environment(services: Services) -> dict[str, str]:
    """The environment of every service and of every command that talks to them."""
    return {
        **os.environ,
        **prefect_environment(services.store, services.api, credentials.keep(services.api)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # judges and scorers: not used, and slow to start
        "PREFECT_CLIENT_MAX_RETRIES": MANY_RETRIES,
        services.label.variable: services.label.value,
        "IRIS_STORE": str(services.store),
        "IRIS_CACHE": str(home().parent),
        "PWD": str(CHECKOUT),  # prefect.yaml makes it the working directory of runs
    }


def deploy(services: Services) -> None:
    """Applies `prefect.yaml`.

    Raises:
        ServiceError: Prefect refuses it; has its message.
    """
    done = subprocess.run(
        processes.apply_deployments(),
        cwd=CHECKOUT,
        env={**environment(services), "PREFECT_CLIENT_MAX_RETRIES": FEW_RETRIES},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"deployments/prefect.yaml was not applied:\n{end_of(done.stdout)}")


def _reuse(wanted: Services, echo: Echo) -> Services | None:
    """The services that run already, with the deployments applied again."""
    services = running()
    if services is None:
        return None
    _check_same(services, wanted)
    credentials.check(services.api)
    echo("Prefect, MLflow and the worker run already")
    with _few_retries():
        deploy(services)
        _wait_ready(services)
        _end_lost_runs(services)
    return services


def _start_all(services: Services, echo: Echo) -> Services:
    for each in of_this_cache():  # services of which some have died
        _end(each, echo)
    check_port(services.prefect_port, "prefect-port")
    check_port(services.mlflow_port, "mlflow-port")
    try:
        with _few_retries():
            return _start(services, echo)
    except BaseException:
        _end(services, echo=lambda line: None)
        raise


def _start(services: Services, echo: Echo) -> Services:
    from deployments import pool  # imports Prefect, which is slow

    store = services.store
    private_folder(store / ".prefect")
    echo("starting Prefect and MLflow")
    prefect = _start_service(services, "prefect", processes.prefect_server(services.prefect_port))
    mlflow = _start_service(services, "mlflow", processes.mlflow_server(services.mlflow_port, store))
    wait_healthy("the Prefect server", f"{services.api}/health", prefect, _log("prefect"))
    pool.get_or_create(services.api)
    _end_lost_runs(services)
    echo("applying the deployments and starting the worker")
    deploy(services)  # first: the worker's first look at the pool makes them ready
    started = datetime.datetime.now(datetime.UTC)
    worker = _start_service(services, "worker", processes.worker())
    _wait(lambda: worker.poll() is not None or pool.online(services.api, started), START_S)
    if worker.poll() is not None or not pool.online(services.api, started):
        raise ServiceError(f"the worker did not start:\n{end_of(_log('worker').read_text())}")
    _wait_ready(services)
    wait_healthy("MLflow", f"{services.mlflow}/health", mlflow, _log("mlflow"))
    return services


def _start_service(services: Services, name: str, command: list[str]) -> subprocess.Popen[Any]:
    """Starts a service below a supervisor, which it returns."""
    log = _log(name)
    log.unlink(missing_ok=True)
    variables, label = environment(services), services.label
    with log.open("a") as file:
        return supervision.start(name, command, variables, file, label, cwd=CHECKOUT, outlives=True)


def _end(services: Services, echo: Echo) -> None:
    if runs := services.flow_runs():  # first, so that they can still tell the server that they ended
        echo("stopping the flow runs")
        terminate(runs, RUN_GRACE_S)
    echo("stopping Prefect, MLflow and the worker")
    terminate(list(services.supervisors()), 2 * GRACE_S)
    services.label.kill()


@contextmanager
def _exclusive(echo: Echo) -> Iterator[None]:
    """Lets one `up` or `down` of this user run at a time."""
    private_folder(home())
    lock = filelock.FileLock(home() / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        echo("waiting for another `iris up` or `iris down`")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _few_retries() -> Iterator[None]:
    """Lets Prefect's client wait some seconds only: a server of ours that stops answering while it starts has died."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings  # slow

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: int(FEW_RETRIES)}):
        yield


def _wait_ready(services: Services) -> None:
    from deployments import pool  # imports Prefect, which is slow

    if not _wait(lambda: pool.ready(services.api), START_S):
        raise ServiceError(
            f"the worker asks for no runs; {_log('worker')} ends with:\n{end_of(_log('worker').read_text())}"
        )


def _end_lost_runs(services: Services) -> None:
    from deployments import lost  # imports Prefect, which is slow

    lost.end_lost_runs(services.store, services.api)


def _check_same(services: Services, wanted: Services) -> None:
    """Raises ConfigError if other services run than are `wanted`."""

    def settings(of: Services) -> tuple[Path, int, int]:
        return of.store, of.prefect_port, of.mlflow_port

    if settings(services) != settings(wanted):
        raise ConfigError(
            f"services run already, on the store {services.store}, {services.prefect} and {services.mlflow}: "
            "type `iris down` first"
        )


def _log(name: str) -> Path:
    return home() / f"{name}.log"


def _wait(reached: Callable[[], bool], seconds: float) -> bool:
    """Waits until `reached()`, for some seconds at most. Returns whether it was."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True
