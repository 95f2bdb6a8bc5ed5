"""A real MLflow server, shared by the tests that need one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from iris_core import tracking
from iris_core.common.errors import ServiceError
from iris_core.common.ports import free_port


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server, on a port and a database of its own."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/served.db",
        "--artifacts-destination",
        str(folder / "served"),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # eight processes more
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    while True:
        try:
            tracking.check(uri)
            break
        except ServiceError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
    yield uri
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
