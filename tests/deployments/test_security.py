"""Real servers and the worker refuse pages of other sites, callers without credentials and foreign deployments."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow.tracking import MlflowClient

from deployments import credentials, pool, processes, server, services
from deployments.outage import Outage
from deployments.processes import AUTH_VARIABLE
from deployments.running import Services
from iris_core.common.errors import ConfigError, ServiceError
from tests.deployments.test_services import ended, wait_for
from tests.processes import command_line

pytestmark = pytest.mark.integration
PAGE = Path(__file__).with_name("attack.html")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(not BROWSER, reason="needs Chromium")


class Site(ThreadingHTTPServer):
    """Another site, which serves the attacking page. All may read and write it, so it shows which attacks work."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.targets: list[dict[str, Any]] = []
        self.written: list[str] = []
        self.report: queue.Queue[dict[str, str]] = queue.Queue()

    def at(self, name: str) -> str:
        return f"http://{name}:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        pages = {"/page": PAGE.read_text(), "/targets": json.dumps(self.server.targets)}
        self.answer(pages.get(self.path, "all of it"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer("done")
        if self.path == "/report":
            self.server.report.put(json.loads(body))
        else:
            self.server.written.append(body.split('"')[3])

    def do_OPTIONS(self) -> None:
        self.answer("")

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "*")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def browser(profile: Path, *arguments: str) -> list[str]:
    """The command of a browser for which every name of *.example is this machine."""
    assert BROWSER
    return [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP *.example 127.0.0.1",
        *arguments,
    ]


def shown(url: str, profile: Path) -> str:
    """The page after its scripts have run."""
    command = browser(profile, "--virtual-time-budget=30000", "--dump-dom", url)
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def attacked(site: Site, name: str, profile: Path) -> dict[str, str]:
    """What the attacking page saw, opened by `name`."""
    command = browser(profile, f"{site.at(name)}/page")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        return site.report.get(timeout=300)
    finally:
        process.terminate()
        process.wait()


def prefect_targets(up: Services) -> dict[str, Any]:
    reads = [f"{up.api}/health", f"{up.api}/csrf-token?client=a", f"{up.prefect}/ui-settings"]
    sockets = [up.api.replace("http", "ws") + path for path in ("/events/out", "/logs/out")]
    return {"name": "prefect", "reads": reads, "writes": [f"{up.api}/flows/"], "sockets": sockets}


def mlflow_targets(up: Services) -> dict[str, Any]:
    apis = [f"{up.mlflow}/{api}/2.0/mlflow/experiments" for api in ("api", "ajax-api")]
    reads = [f"{api}/search?max_results=9" for api in apis]
    writes = [f"{api}/create" for api in apis]
    return {"name": "mlflow", "reads": reads, "writes": writes, "sockets": []}


def stored(up: Services) -> set[str]:
    """The names of everything that a page may have written."""
    answer = httpx.post(f"{up.api}/flows/filter", headers=tokens(up), json={})
    flows = {flow["name"] for flow in answer.raise_for_status().json()}
    return flows | {found.name for found in MlflowClient(up.mlflow).search_experiments()}


def tokens(up: Services) -> dict[str, str]:
    """The headers that a client with credentials sends."""
    basic = base64.b64encode(credentials.keep(up.api).encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Prefect-Csrf-Client": "test"}
    token = httpx.get(f"{up.api}/csrf-token?client=test", headers=headers).raise_for_status()
    return {**headers, "Prefect-Csrf-Token": token.json()["token"]}


@needs_browser
@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1"])
def test_a_page_of_another_site_reads_and_writes_nothing(up: Services, site: Site, tmp_path: Path, name: str) -> None:
    other = site.at("other.example")
    site.targets = [
        prefect_targets(up),
        *([mlflow_targets(up)] if name != "127.0.0.1" else []),  # MLflow trusts pages of this machine
        {"name": "open", "reads": [other], "writes": [other], "sockets": []},
    ]
    before = stored(up)
    seen = attacked(site, name, tmp_path)
    control = {key.split()[1]: seen.pop(key) for key in list(seen) if key.startswith("open")}
    assert control == {
        "read": "read 200 all of it",
        "json": "read 200 done",
        "text": "read 200 done",
        "opaque": "opaque",
    }
    assert site.written == [f"{how} from {name}" for how in ("json", "text", "opaque", "form")]
    assert len(seen) == (8 if name == "127.0.0.1" else 16)
    assert {key: what for key, what in seen.items() if what not in ("blocked", "opaque")} == {}
    assert stored(up) == before


@needs_browser
@pytest.mark.parametrize("name", ["rebound.example", "10.rebound.example", "127.0.0.1.example"])
def test_a_name_that_was_made_to_point_here_shows_nothing(up: Services, tmp_path: Path, name: str) -> None:
    for place in (f"{up.api}/health", f"{up.prefect}/ui-settings", up.prefect):
        page = shown(place.replace(processes.HOST, name), tmp_path)
        assert "Invalid host header" in page
    for place in ("/ajax-api/2.0/mlflow/experiments/search?max_results=9", ""):
        page = shown(f"{up.mlflow}{place}".replace(processes.HOST, name), tmp_path)
        assert "Invalid Host header" in page


@needs_browser
def test_the_link_logs_a_browser_in_and_it_stays_so(up: Services, tmp_path: Path) -> None:
    assert "full-loop" not in shown(f"{up.prefect}/deployments", tmp_path)
    shown(up.login, tmp_path)
    assert "full-loop" in shown(f"{up.prefect}/deployments", tmp_path)
    assert "full-loop" in shown(f"{up.prefect}/v2/deployments", tmp_path)
    shown(f"{up.prefect}/iris-login#b3RoZXI6d3Jvbmc=", tmp_path)  # any page can lead a browser there
    assert "full-loop" in shown(f"{up.prefect}/deployments", tmp_path)
    by_other_name = up.login.replace(processes.HOST, "localhost")
    shown(by_other_name, tmp_path)
    assert "full-loop" in shown(f"http://localhost:{up.prefect_port}/deployments", tmp_path)


def check_guarded(api: str) -> None:
    """Checks that reading needs credentials, and that writing needs a CSRF token, too."""
    assert httpx.get(f"{api}/health").json() is True
    login = tuple(credentials.of(api).split(":"))
    for auth in (None, ("iris", "wrong")):
        assert httpx.get(f"{api}/admin/version", auth=auth).status_code == 401
        token = httpx.get(f"{api}/csrf-token?client=a", auth=auth)
        assert token.status_code == 401
        sent = httpx.post(f"{api}/flows/filter", json={}, auth=auth)
        assert sent.status_code in (401, 403)
    assert httpx.get(f"{api}/admin/version", auth=login).status_code == 200
    assert httpx.post(f"{api}/flows/filter", json={}, auth=login).status_code == 403
    foreign = httpx.get(f"{api}/admin/version", auth=login, headers={"Host": "evil.example"})
    assert foreign.status_code == 400
    page = httpx.get(f"{api}/health", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in page.headers
    assert page.headers["x-frame-options"] == "DENY"


def test_the_server_of_up_requires_credentials(up: Services) -> None:
    check_guarded(up.api)


def test_the_server_of_run_requires_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(os.environ, "PREFECT_API_URL", raising=False)
    with server.prefect_api(tmp_path, Outage(60, print, print)) as api:
        check_guarded(api)
    assert (tmp_path / ".prefect").stat().st_mode & 0o777 == 0o700


def test_run_finds_the_credentials_of_up_and_names_wrong_ones(
    up: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", up.api)
    monkeypatch.setenv(AUTH_VARIABLE, "iris:old")
    with server.prefect_api(tmp_path, Outage(60, print, print)) as api:
        assert api == up.api
        assert os.environ[AUTH_VARIABLE] == credentials.keep(up.api)
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path))  # another machine's
    for wrong in ("iris:old", ""):
        monkeypatch.setenv(AUTH_VARIABLE, wrong)
        refused = pytest.raises(ServiceError, match=f"{AUTH_VARIABLE}: .* refuses")
        with refused, server.prefect_api(tmp_path, Outage(60, print, print)):
            pass


def test_credentials_that_were_made_again_are_named(up: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(os.environ, "PREFECT_API_URL", raising=False)
    kept = credentials.path().read_text()
    credentials.path().unlink()
    try:
        with pytest.raises(ConfigError, match="other credentials.*iris down"):
            services.up(up.store, up.prefect_port, up.mlflow_port)
        refused = pytest.raises(ConfigError, match="other credentials.*iris down")
        with refused, server.prefect_api(up.store, Outage(60, print, print)):
            pass
    finally:
        credentials.path().write_text(kept)


def test_prefect_finds_them_by_the_profile_and_no_list_of_processes_or_log_has_them(
    up: Services, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    environment["PREFECT_PROFILES_PATH"] = str(credentials.path())
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "deployment", "inspect", "iris/full-loop"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "flows/iris.py:iris" in done.stdout, done.stderr
    secret = credentials.keep(up.api).partition(":")[2]
    assert all(secret not in command_line(each) for each in up.processes())
    assert all(secret not in log.read_text() for log in processes.home().glob("*.log"))


@pytest.mark.parametrize("kind", ["pull step", "job variable"])
def test_the_worker_refuses_foreign_code(up: Services, tmp_path: Path, kind: str) -> None:
    ran = tmp_path / "ran"
    shell = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {ran}"}}
    with credentials.client(up.api) as client:
        own = client.read_deployment_by_name("iris/full-loop")
        if kind == "pull step":
            deployment = client.create_deployment(
                own.flow_id,
                "foreign",
                pull_steps=[shell],
                entrypoint=own.entrypoint,
                work_pool_name=pool.NAME,
                enforce_parameter_schema=False,
            )
            run = client.create_flow_run_from_deployment(deployment)
        else:
            command = {"command": f"touch {ran}"}
            run = client.create_flow_run_from_deployment(own.id, job_variables=command)
        state = wait_for(lambda: ended(client, run)).state
    assert state.type.value == "CRASHED"
    assert "runs only what deployments/prefect.yaml holds" in str(state.message)
    assert not ran.exists()
