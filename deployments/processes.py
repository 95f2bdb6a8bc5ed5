"""The commands of the servers and the worker, their environment and ports, and how to find out whether they answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from iris_core.common.cache import cache_folder
from iris_core.common.disk import FULL
from iris_core.common.errors import ConfigError, ServiceError
from iris_core.common.uris import sqlite_uri
from iris_core.execution.launch import TELEMETRY_OFF

CHECKOUT = Path(__file__).parents[1]
HOST = "127.0.0.1"
START_S = 180.0
AUTH_VARIABLE = "PREFECT_API_AUTH_STRING"
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
LOG_LINES = 15


def home() -> Path:
    """The folder for logs and credentials of the services."""
    return cache_folder() / "services"


def private_folder(folder: Path) -> Path:
    """Creates `folder`, readable by this user only.

    Raises:
        ConfigError: it cannot be created, or belongs to another user.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ConfigError(
            f"{folder} cannot be made a folder of your own ({error.strerror}): choose another store, or set IRIS_CACHE "
            "to a folder that can be written"
        ) from error
    return folder


def prefect_environment(store: Path, api: str, credentials: str) -> dict[str, str]:
    """Prefect's settings for a server that keeps its runs in `store`, and for its clients.

    Args:
        store: the store.
        api: the server's address.
        credentials: as `user:password`; without them the server answers only whether it is healthy.
    """
    home = store / ".prefect"
    port = urlsplit(api).port
    return {
        **TELEMETRY_OFF,
        "PREFECT_HOME": str(home),
        DATABASE: os.environ.get(DATABASE) or sqlite_uri(home / "prefect.db", "sqlite+aiosqlite"),
        "PREFECT_API_URL": api,
        AUTH_VARIABLE: credentials,
        "PREFECT_SERVER_API_AUTH_STRING": credentials,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
        "PREFECT_SERVER_UI_API_URL": "/api",  # relative, so that it works for each of these names
        "PREFECT_CLI_PROMPT": "false",
    }


def prefect_server(port: int) -> list[str]:
    """The command that serves Prefect's API and UI on `port`."""
    app = ["--factory", "deployments.prefect_app:create", "--app-dir", str(CHECKOUT)]
    address = ["--host", HOST, "--port", str(port)]
    return [*_python("uvicorn"), *app, *address, "--log-level", "warning"]


def mlflow_server(port: int, store: Path) -> list[str]:
    """The command that serves MLflow on `port` from the database in `store`."""
    # MLflow's default list has patterns for private addresses: 10.* also matches a name like 10.example.com
    names = f"{HOST}:{port},localhost:{port}"
    return [
        *_python("mlflow"),
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
        "--allowed-hosts",
        names,
        "--backend-store-uri",
        sqlite_uri(store / "mlflow.db"),
        "--artifacts-destination",
        str(store / "mlflow-artifacts"),
    ]


def worker() -> list[str]:
    """The command of the worker, which runs this project's deployments as processes on this machine."""
    return _python("deployments.worker")


def apply_deployments() -> list[str]:
    """The command that applies `prefect.yaml`."""
    file = ["--prefect-file", "deployments/prefect.yaml"]
    return [*_python("prefect"), "--no-prompt", "deploy", "--all", *file]


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
    last = end_of(log.read_text())
    reason = f"did not start; {log} ends with:\n{last}" if last else "did not start and wrote no log: try again"
    raise ServiceError(f"{name} {reason}")


def end_of(text: str) -> str:
    """The last lines of a log."""
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _holder(port: int) -> str:
    """Which process listens on `port`, in words; empty if this user may not know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return ""
