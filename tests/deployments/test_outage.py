"""Outages of a Prefect API: the messages, their end, and a real server that is started again."""

from __future__ import annotations

import http.server
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deployments import outage, processes
from deployments.outage import Outage
from iris_core.common.errors import IrisError
from tests.processes import wait_for

ROOT = Path(__file__).parents[2]
LOOP = """
import signal, sys
from pathlib import Path

import psutil

from deployments.outage import Outage
from deployments.server import prefect_api
from iris_core.execution import supervision

with prefect_api(Path(sys.argv[1]), Outage(120, print, lambda error: sys.exit(str(error)))) as api:
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact

    @flow
    def loop():
        supervision.send(psutil.Process().children(recursive=True), signal.SIGKILL)
        create_markdown_artifact("done", key="after")

    loop()
"""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server that has an address, which nobody else can take, and does not listen yet."""
    found = http.server.ThreadingHTTPServer((processes.HOST, 0), _Healthy, bind_and_activate=False)
    found.server_bind()
    yield found
    found.server_close()


def api_of(server: http.server.ThreadingHTTPServer) -> str:
    return f"http://{processes.HOST}:{server.server_port}/api"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LOOK_EVERY_S", 0.02)


@pytest.mark.unit
def test_a_long_outage_is_waited_for_and_then_given_up(hasty: None, server: http.server.ThreadingHTTPServer) -> None:
    said: list[str] = []
    given_up: list[IrisError] = []
    api = api_of(server)
    away = Outage(0.5, said.append, given_up.append)
    with away.watched(api):
        wait_for(lambda: given_up)
    assert away.lasts
    (message,) = said
    assert f"{api} does not answer" in message
    assert "waiting" in message
    assert "run again to resume" in str(given_up[0])
    assert given_up[0].exit_code == 75


@pytest.mark.unit
def test_the_end_of_an_outage_is_echoed(hasty: None, server: http.server.ThreadingHTTPServer) -> None:
    said: list[str] = []
    away = Outage(600, said.append, said.append)
    with away.watched(api_of(server)):
        wait_for(lambda: away.lasts)
        server.server_activate()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wait_for(lambda: not away.lasts)
        server.shutdown()
    assert "answers again" in said[1]


class _Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Prints nothing."""


@pytest.mark.integration
def test_a_server_of_its_own_that_is_killed_is_started_again(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(tmp_path)],
        env={**environment, "PYTHONPATH": str(ROOT), "IRIS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "had ended: it runs again" in done.stdout
    with closing(sqlite3.connect(tmp_path / ".prefect" / "prefect.db")) as database:
        assert database.execute("select state_type from flow_run").fetchall() == [("COMPLETED",)]
        assert database.execute("select data from artifact where key = 'after'").fetchone()
