"""What answers of a model can do in the Prefect UI, seen with a real browser: nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.processes import wait_healthy
from flows.artifacts import show_report, show_row
from iris_core.common.ports import free_port
from iris_core.common.progress import Advance
from iris_core.reporting.summary import Sample, rows
from tasks.stage import ProgressArtifact
from tests.iris_core.small_experiment import SmallExperiment

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium"),
]
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """A server elsewhere: its address, and what it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[str]:
    """A plain Prefect server with its UI."""
    port, log = free_port(), tmp_path / "server.log"
    url = f"http://127.0.0.1:{port}/api"
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=file, stderr=file, cwd=tmp_path)
    wait_healthy("Prefect", f"{url}/health", server, log)
    with temporary_settings({PREFECT_API_URL: url}):
        yield url
    server.terminate()
    server.wait()


def page(url: str, folder: Path) -> str:
    """The document at `url` once its scripts have run."""
    assert BROWSER
    command = [BROWSER, *QUIET, f"--user-data-dir={folder}", "--virtual-time-budget=25000"]
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=400, check=False)
    return done.stdout


def test_answers_of_a_model_are_text(
    api: str, stranger: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = stranger
    hostile = [
        f"<script>document.title='PWNED';fetch('{address}/script')</script>",
        f"<img src={address}/img onerror=\"fetch('{address}/onerror')\">",
        f"![x]({address}/markdown.png)",
        "[click](javascript:document.title='PWNED')",
        f"<style>@import url({address}/css);</style><iframe src={address}/frame></iframe>",
    ]
    small = SmallExperiment(tmp_path, [0.3])
    small.warnings = {"generate": hostile}
    small.initial()
    small.iterations()
    monkeypatch.setattr("flows.artifacts.samples", lambda store: [Sample(*hostile[:4])])
    show_report(small.store, tmp_path / "report.html", None)
    show_row(small.store, rows(small.store)[-1])
    event = Advance(stage=hostile[0], done=1, total=2, text=" ".join(hostile))
    ProgressArtifact(small.store, "stage").move(event)
    for key in ("small-report", "small-iteration-0", "small-stage-progress"):
        wanted = {"artifacts": {"key": {"any_": [key]}}}
        (artifact,) = httpx.post(f"{api}/artifacts/filter", json=wanted).json()
        shown = page(f"{api.removesuffix('/api')}/artifacts/artifact/{artifact['id']}", tmp_path / key)
        assert "PWNED" in shown, key  # as text
        assert "<title>PWNED" not in shown
        assert "<script>document" not in shown
        assert 'href="javascript' not in shown
        assert f'src="{address}' not in shown
    assert asked == []
