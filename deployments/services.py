"""Starts and stops what `iris up` offers: a Prefect server, an MLflow server, and a worker with the deployments.

Each service is a process of its own with a log file, below a supervisor that ends with it all that it has started. What
they are is written in the environment that they and everything they start were given, and nowhere else: `down` finds
what lives, whatever became of `up`, of files and of settings since.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import psutil
from pydantic import ValidationError

from deployments import credentials, ends, processes
from deployments.processes import (
    CHECKOUT,
    HOST,
    START_S,
    check_port,
    end_of,
    home,
    prefect_environment,
    private_folder,
    wait_healthy,
)
from iris_core.common.errors import ConfigError, ServiceError
from iris_core.common.strict import Strict
from iris_core.execution import supervision
from iris_core.execution.launch import TELEMETRY_OFF
from iris_core.execution.supervision import GRACE_S, by_value, end_marked, marked, send

MARK_VARIABLE = "IRIS_SERVICES"
NAMES = {"prefect", "mlflow", "worker"}
RUN_GRACE_S = 30.0
# how often Prefect's client tries again, with pauses that double
PATIENT = "9"  # 17 minutes
IMPATIENT = "2"  # 6 seconds

Say = Callable[[str], None]


class Services(Strict):
    """What one `up` has started.

    Attributes:
        cache: the folder that held its logs (IRIS_CACHE).
        checkout: whose deployments they run.
        store: the store whose runs they show.
        mark: of this `up` alone.
    """

    cache: Path
    checkout: Path
    store: Path
    prefect_port: int
    mlflow_port: int
    mark: str

    @property
    def prefect(self) -> str:
        """Address of the Prefect UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def login(self) -> str:
        """The same, as a link that logs a browser in; a secret."""
        return credentials.login(self.prefect, credentials.keep(self.api))

    @property
    def api(self) -> str:
        """What PREFECT_API_URL is set to."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """Address of MLflow, its UI and tracking URI."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def label(self) -> str:
        """What MARK_VARIABLE is set to in everything that belongs to them."""
        return self.model_dump_json()

    def alive(self) -> set[str]:
        """Names of the services whose supervisor lives, as it does for as long as they do."""
        return set(_supervised(self.processes()).values())

    def processes(self) -> list[psutil.Process]:
        """Every live process that belongs to them."""
        return marked(MARK_VARIABLE, self.label)

    def supervisors(self) -> list[psutil.Process]:
        """The processes above each service."""
        return list(_supervised(self.processes()))


def running() -> Services | None:
    """The services, if all three live."""
    return next((each for each in _ours() if each.alive() == NAMES), None)


def up(store: Path, prefect_port: int = 4200, mlflow_port: int = 5000, say: Say = print) -> Services:
    """Starts the services on `store`, or takes those that run, and applies the deployments.

    Args:
        store: the store; its folder `.prefect` and its `mlflow.db` hold what the servers keep.
        prefect_port: of the Prefect server.
        mlflow_port: of the MLflow server.
        say: told what happens.

    Raises:
        ConfigError: services run on another store or with other credentials, a port is taken, or a folder cannot be written.
        ServiceError: a service does not start, has the end of its log; or the Prefect server went away meanwhile.
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
        mark=uuid.uuid4().hex,
    )
    with _alone(say), ends.explained(services.store, lambda: services.api):
        return _keep(services, say) or _start_anew(services, say)


def down(say: Say = print) -> bool:
    """Ends the services and everything they started, flow runs included. Returns whether there were any.

    Where none was started with this IRIS_CACHE, those of this checkout are ended: the variable, or HOME, has changed.
    """
    with _alone(say):
        found = _ours() or [each for each in _all() if each.checkout == CHECKOUT]
        for services in found:
            _end(services, say)
    if not found:
        say("nothing is running")
    return bool(found)


def environment(services: Services) -> dict[str, str]:
    """What every service and every command to them is started with."""
    return {
        **os.environ,
        **TELEMETRY_OFF,
        **prefect_environment(services.store, services.api, credentials.keep(services.api)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # judges and scorers: not used, and costly to start
        "PREFECT_CLIENT_MAX_RETRIES": PATIENT,
        MARK_VARIABLE: services.label,
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
        env={**environment(services), "PREFECT_CLIENT_MAX_RETRIES": IMPATIENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"deployments/prefect.yaml was not applied:\n{end_of(done.stdout)}")


def _keep(wanted: Services, say: Say) -> Services | None:
    """The services that run already, with today's deployments."""
    services = running()
    if services is None:
        return None
    _same(services, wanted)
    credentials.check(services.api)
    say("Prefect, MLflow and the worker run already")
    with _impatient():
        deploy(services)
        _wait_ready(services)
        _end_lost_runs(services)
    return services


def _start_anew(services: Services, say: Say) -> Services:
    for each in _ours():  # what is left of others, of which some have died
        _end(each, say)
    check_port(services.prefect_port, "prefect-port")
    check_port(services.mlflow_port, "mlflow-port")
    try:
        with _impatient():
            return _start(services, say)
    except BaseException:
        _end(services, say=lambda line: None)
        raise


def _start(services: Services, say: Say) -> Services:
    from deployments import pool  # imports Prefect, which is slow

    store = services.store
    private_folder(store / ".prefect")
    say("starting Prefect and MLflow")
    prefect = _spawn(services, "prefect", processes.prefect_server(services.prefect_port))
    mlflow = _spawn(services, "mlflow", processes.mlflow_server(services.mlflow_port, store))
    wait_healthy("the Prefect server", f"{services.api}/health", prefect, _log("prefect"))
    pool.make(services.api)
    pool.end_lost_runs(services.api)
    _end_lost_runs(services)
    say("applying the deployments and starting the worker")
    deploy(services)  # first: the worker's first look at the pool makes them ready
    started = datetime.datetime.now(datetime.UTC)
    worker = _spawn(services, "worker", processes.worker())
    _wait(lambda: worker.poll() is not None or pool.online(services.api, started), START_S)
    if worker.poll() is not None or not pool.online(services.api, started):
        raise ServiceError(f"the worker did not start:\n{end_of(_log('worker').read_text())}")
    _wait_ready(services)
    wait_healthy("MLflow", f"{services.mlflow}/health", mlflow, _log("mlflow"))
    return services


def _end(services: Services, say: Say) -> None:
    if _flow_runs(services):  # first, so that they can still tell the server that they ended
        say("stopping the flow runs")
        send(_flow_runs(services), signal.SIGTERM)
        _wait(lambda: not _flow_runs(services), RUN_GRACE_S)
    say("stopping Prefect, MLflow and the worker")
    send(services.supervisors(), signal.SIGTERM)
    _wait(lambda: not services.supervisors(), 2 * GRACE_S)
    end_marked(MARK_VARIABLE, services.label)


@contextmanager
def _alone(say: Say) -> Iterator[None]:
    """Waits until no other `up` or `down` of this user is at work."""
    private_folder(home())
    lock = filelock.FileLock(home() / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say("waiting for another `iris up` or `iris down`")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _impatient() -> Iterator[None]:
    """A server of ours that has just answered and does not any more has died: Prefect's client waits some seconds only."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings  # slow

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: int(IMPATIENT)}):
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


def _spawn(services: Services, name: str, command: list[str]) -> subprocess.Popen[Any]:
    """Starts a service below a supervisor."""
    log = _log(name)
    log.unlink(missing_ok=True)
    with log.open("a") as file:
        return supervision.start(name, command, environment(services), file, cwd=CHECKOUT, outlives=True)


def _ours() -> list[Services]:
    """Those started with this IRIS_CACHE of which anything lives."""
    return [each for each in _all() if each.cache == home().parent]


def _all() -> list[Services]:
    """All of this user's of which anything lives."""
    found = []
    for label in by_value(MARK_VARIABLE):
        with suppress(ValidationError):  # of another version
            found.append(Services.model_validate_json(label))
    return found


def _same(services: Services, wanted: Services) -> None:
    def asked(of: Services) -> tuple[Path, int, int]:
        return of.store, of.prefect_port, of.mlflow_port

    if asked(services) != asked(wanted):
        raise ConfigError(
            f"services run already, on the store {services.store}, {services.prefect} and {services.mlflow}: "
            "type `iris down` first"
        )


def _log(name: str) -> Path:
    return home() / f"{name}.log"


def _flow_runs(services: Services) -> list[psutil.Process]:
    """The processes of flow runs that the worker has started."""
    commands = _commands(services.processes())
    return [process for process, command in commands.items() if "prefect.engine" in command]


def _supervised(processes: list[psutil.Process]) -> dict[psutil.Process, str]:
    """The supervisors of services among `processes`, and what each is called."""
    return {
        process: command[-1]
        for process, command in _commands(processes).items()
        if command[-2:-1] == [supervision.__file__] and command[-1] in NAMES
    }


def _commands(processes: list[psutil.Process]) -> dict[psutil.Process, list[str]]:
    """The command lines of those that live."""
    found = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found[process] = process.cmdline()
    return found


def _wait(reached: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True
