"""Starts and stops what `iris up` offers: a Prefect server, an MLflow server, and a worker with the deployments.

Each service is a process of its own with a log file; a state file says where they are. Everything they start carries
a mark in its environment, by which `down` finds and ends all of it.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import ValidationError

from iris_core.errors import ConfigError, ServiceError
from iris_core.launch import GRACE_S, TELEMETRY_OFF, descendants
from iris_core.store import Strict, write_atomic

CHECKOUT = Path(__file__).parents[1]
MARK_VARIABLE = "IRIS_SERVICES"
HOST = "127.0.0.1"
START_S = 180.0
WORKER_GRACE_S = 45.0  # Prefect's worker gives its flow runs 30 s
LOG_LINES = 15

Say = Callable[[str], None]


class Services(Strict):
    """What `up` has started.

    Attributes:
        store: the store whose runs they show.
        mark: found in the environment of every process that belongs to them.
        pids: process ids by name: prefect, mlflow, worker.
    """

    store: Path
    prefect_port: int
    mlflow_port: int
    mark: str
    pids: dict[str, int]

    @property
    def prefect(self) -> str:
        """Address of the Prefect UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def api(self) -> str:
        """What PREFECT_API_URL is set to."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """Address of MLflow, its UI and tracking URI."""
        return f"http://{HOST}:{self.mlflow_port}"

    def alive(self) -> set[str]:
        """Names of the services whose process lives."""
        marked = {process.pid for process in descendants(self.mark, MARK_VARIABLE)}
        return {name for name, pid in self.pids.items() if pid in marked}


def home() -> Path:
    """Where state and logs of the services lie."""
    cache = os.environ.get("IRIS_CACHE") or Path.home() / ".cache" / "iris"
    return Path(cache).expanduser().absolute() / "services"


def running() -> Services | None:
    """The services, if all three live."""
    services = _state()
    return services if services and services.alive() == set(services.pids) else None


def up(
    store: Path, prefect_port: int = 4200, mlflow_port: int = 5000, say: Say = print
) -> Services:
    """Starts the services on `store`, or takes those that run, and applies the deployments.

    Args:
        store: the store; its folder `.prefect` and its `mlflow.db` hold what the servers keep.
        prefect_port: of the Prefect server.
        mlflow_port: of the MLflow server.
        say: told what happens.

    Raises:
        ConfigError: services run on another store, or a port is taken.
        ServiceError: a service does not start; has the end of its log.
    """
    store = store.expanduser().absolute()
    services = running()
    if services:
        _same(services, store, prefect_port, mlflow_port)
        say("Prefect, MLflow and the worker run already")
        deploy(services)
        return services
    down(say=lambda line: None)
    check_port(prefect_port, "prefect-port")
    check_port(mlflow_port, "mlflow-port")
    services = Services(
        store=store,
        prefect_port=prefect_port,
        mlflow_port=mlflow_port,
        mark=uuid.uuid4().hex,
        pids={},
    )
    try:
        return _start(services, say)
    except BaseException:
        down(say=lambda line: None)
        raise


def down(say: Say = print) -> bool:
    """Ends the services and everything they started, flow runs included. Returns whether there were any."""
    services = _state()
    if services is None:
        say("nothing is running")
        return False
    worker = services.pids.get("worker")
    if worker and "worker" in services.alive():  # first, so that its runs can still tell the server
        say("stopping the worker and its runs")
        _signal(worker, signal.SIGTERM)
        _wait_end(lambda: "worker" not in services.alive(), WORKER_GRACE_S)
    say("stopping Prefect and MLflow")
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in descendants(services.mark, MARK_VARIABLE):
            _signal(process.pid, number)
        if _wait_end(lambda: not descendants(services.mark, MARK_VARIABLE), GRACE_S):
            break
    (home() / "services.json").unlink(missing_ok=True)
    return True


def environment(services: Services) -> dict[str, str]:
    """What every service and every command to them is started with."""
    return {
        **os.environ,
        **TELEMETRY_OFF,
        **prefect_environment(services.store, services.api),
        MARK_VARIABLE: services.mark,
        "IRIS_STORE": str(services.store),
        "IRIS_CACHE": str(home().parent),
        "PWD": str(CHECKOUT),  # prefect.yaml makes it the working directory of runs
    }


def prefect_environment(store: Path, api: str) -> dict[str, str]:
    """Prefect's settings for a server that keeps its runs in `store`, and for its clients."""
    return {
        "PREFECT_HOME": str(store / ".prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
    }


def prefect_server(port: int) -> list[str]:
    """The command that serves Prefect's API and UI on `port`."""
    serve = ["server", "start", "--host", HOST, "--port", str(port)]
    return [sys.executable, "-m", "prefect", *serve]


def deploy(services: Services) -> None:
    """Applies `prefect.yaml`.

    Raises:
        ServiceError: Prefect refuses it; has its message.
    """
    command = ["--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *command],
        cwd=CHECKOUT,
        env=environment(services),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"deployments/prefect.yaml was not applied:\n{_end_of(done.stdout)}")


def check_port(port: int, option: str) -> None:
    """Raises ConfigError if something listens on `port`."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken{_holder(port)}: stop what uses it, or choose another with --{option}"
            ) from error


def wait_healthy(name: str, url: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Waits until `url` answers with success.

    Raises:
        ServiceError: `process` has ended, or there is no answer in time.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise ServiceError(f"{name} did not start; {log} ends with:\n{_end_of(log.read_text())}")


def _start(services: Services, say: Say) -> Services:
    from deployments import pool  # imports Prefect, which is slow

    store = services.store
    store.mkdir(parents=True, exist_ok=True)
    say("starting Prefect and MLflow")
    prefect, services = _spawn(services, "prefect", prefect_server(services.prefect_port))
    mlflow, services = _spawn(services, "mlflow", _mlflow_server(services))
    wait_healthy("the Prefect server", f"{services.api}/health", prefect, _log("prefect"))
    pool.make(services.api)
    pool.end_lost_runs(services.api)
    say("applying the deployments")
    deploy(services)
    say("starting the worker")
    started = datetime.datetime.now(datetime.UTC)
    start = [
        "worker",
        "start",
        "--pool",
        pool.NAME,
        "--type",
        "process",
        "--name",
        pool.worker_name(),
    ]
    worker, services = _spawn(services, "worker", [sys.executable, "-m", "prefect", *start])
    if not _wait_end(
        lambda: worker.poll() is not None or pool.online(services.api, started), START_S
    ):
        raise ServiceError(f"the worker does not answer; see {_log('worker')}")
    if worker.poll() is not None:
        raise ServiceError(f"the worker did not start:\n{_end_of(_log('worker').read_text())}")
    wait_healthy("MLflow", f"{services.mlflow}/health", mlflow, _log("mlflow"))
    return services


def _mlflow_server(services: Services) -> list[str]:
    return [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(services.mlflow_port),
        "--backend-store-uri", f"sqlite:///{services.store / 'mlflow.db'}",
        "--artifacts-destination", str(services.store / "mlflow-artifacts"), "--workers", "1",
    ]  # fmt: skip


def _spawn(
    services: Services, name: str, command: list[str]
) -> tuple[subprocess.Popen[Any], Services]:
    """Starts a service in a session of its own and notes it in the state file."""
    log = _log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment(services),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    services = services.model_copy(update={"pids": {**services.pids, name: process.pid}})
    write_atomic(home() / "services.json", services.model_dump_json(indent=1))
    return process, services


def _state() -> Services | None:
    try:
        return Services.model_validate(json.loads((home() / "services.json").read_text()))
    except (FileNotFoundError, ValueError, ValidationError):
        return None


def _same(services: Services, store: Path, prefect_port: int, mlflow_port: int) -> None:
    asked = (store, prefect_port, mlflow_port)
    if asked != (services.store, services.prefect_port, services.mlflow_port):
        raise ConfigError(
            f"services run already, on the store {services.store}, {services.prefect} and {services.mlflow}: "
            "type `iris down` first"
        )


def _log(name: str) -> Path:
    return home() / f"{name}.log"


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _wait_end(reached: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def _holder(port: int) -> str:
    """Who listens on `port`, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return ""
