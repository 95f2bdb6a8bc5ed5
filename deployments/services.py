"""Starts and stops what `iris up` offers: a Prefect server, an MLflow server, and a worker with the deployments.

Each service is a process of its own with a log file, below a supervisor that ends with it all that it has started; a
state file says where the supervisors are. Everything they start carries a mark in its environment, too, by which `down`
finds what is left where a supervisor was killed.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from deployments import processes
from deployments.processes import (
    HOST,
    START_S,
    check_port,
    end_of,
    prefect_environment,
    wait_healthy,
)
from iris_core import supervision
from iris_core.errors import ConfigError, ServiceError
from iris_core.launch import TELEMETRY_OFF
from iris_core.store import Strict, write_atomic
from iris_core.supervision import GRACE_S, end_marked, marked, send

CHECKOUT = Path(__file__).parents[1]
MARK_VARIABLE = "IRIS_SERVICES"
RUN_GRACE_S = 30.0

Say = Callable[[str], None]


class Services(Strict):
    """What `up` has started.

    Attributes:
        store: the store whose runs they show.
        mark: found in the environment of every process that belongs to them.
        pids: process ids of their supervisors, by name: prefect, mlflow, worker.
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
        """Names of the services whose supervisor lives, as it does for as long as they do."""
        pids = {process.pid for process in self.supervisors()}
        return {name for name, pid in self.pids.items() if pid in pids}

    def processes(self) -> list[psutil.Process]:
        """Every live process that belongs to them."""
        return marked(MARK_VARIABLE, self.mark)

    def supervisors(self) -> list[psutil.Process]:
        """Those of `pids` that live."""
        return [process for process in self.processes() if process.pid in self.pids.values()]


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
        _end_lost_runs(services)
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
    flow_runs = _flow_runs(services)
    if flow_runs:  # first, so that they can still tell the server that they ended
        say("stopping the flow runs")
        send(flow_runs, signal.SIGTERM)
        _wait(lambda: not _flow_runs(services), RUN_GRACE_S)
    say("stopping Prefect, MLflow and the worker")
    send(services.supervisors(), signal.SIGTERM)
    _wait(lambda: not services.supervisors(), 2 * GRACE_S)
    end_marked(MARK_VARIABLE, services.mark)
    (home() / "services.json").unlink(missing_ok=True)
    return True


def environment(services: Services) -> dict[str, str]:
    """What every service and every command to them is started with."""
    return {
        **os.environ,
        **TELEMETRY_OFF,
        **prefect_environment(services.store, services.api),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # judges and scorers: not used, and costly to start
        MARK_VARIABLE: services.mark,
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
        env=environment(services),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"deployments/prefect.yaml was not applied:\n{end_of(done.stdout)}")


def _start(services: Services, say: Say) -> Services:
    from deployments import pool  # imports Prefect, which is slow

    store = services.store
    store.mkdir(parents=True, exist_ok=True)
    say("starting Prefect and MLflow")
    serve_mlflow = processes.mlflow_server(services.mlflow_port, store)
    prefect, services = _spawn(services, "prefect", processes.prefect_server(services.prefect_port))
    mlflow, services = _spawn(services, "mlflow", serve_mlflow)
    wait_healthy("the Prefect server", f"{services.api}/health", prefect, _log("prefect"))
    pool.make(services.api)
    pool.end_lost_runs(services.api)
    _end_lost_runs(services)
    say("starting the worker and applying the deployments")
    started = datetime.datetime.now(datetime.UTC)
    work = processes.worker(pool.NAME, pool.worker_name())
    worker, services = _spawn(services, "worker", work)
    deploy(services)
    _wait(lambda: worker.poll() is not None or pool.online(services.api, started), START_S)
    if worker.poll() is not None or not pool.online(services.api, started):
        raise ServiceError(f"the worker did not start:\n{end_of(_log('worker').read_text())}")
    wait_healthy("MLflow", f"{services.mlflow}/health", mlflow, _log("mlflow"))
    return services


def _end_lost_runs(services: Services) -> None:
    from deployments import lost  # imports Prefect, which is slow

    lost.end_lost_runs(services.store, services.api)


def _spawn(
    services: Services, name: str, command: list[str]
) -> tuple[subprocess.Popen[Any], Services]:
    """Starts a service below a supervisor and notes it in the state file."""
    log = _log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with log.open("a") as file:
        process = supervision.start(
            name, command, environment(services), file, cwd=CHECKOUT, outlives=True
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


def _flow_runs(services: Services) -> list[psutil.Process]:
    """The processes of flow runs that the worker has started."""
    found = []
    for process in services.processes():
        with suppress(psutil.NoSuchProcess):
            if "prefect.engine" in process.cmdline():
                found.append(process)
    return found


def _wait(reached: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True
