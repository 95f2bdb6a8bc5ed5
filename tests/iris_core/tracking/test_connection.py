"""Where MLflow is: what `check` accepts and refuses, how fast, and what it never says aloud."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.entities import Metric

from iris_core import tracking
from iris_core.common.errors import ConfigError, ServiceError
from iris_core.tracking import connection
from iris_core.tracking.runs import get_or_create_experiment, get_or_create_run, log_params, log_points

SECONDS = 60.0  # on a busy machine; MLflow's own client would try for minutes


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    return uri, tracking.connect(uri)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "mlruns", "/tmp/mlruns", ""])
def test_a_file_store_is_refused(uri):
    with pytest.raises(ConfigError, match=r"tracking\.uri: .* is a file store.*sqlite:////folder/mlflow\.db"):
        tracking.check(uri)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match="unknown scheme; known: http, https, sqlite"):
        tracking.check("ftp://host/x")


def test_a_dead_server_is_named_within_seconds():
    started = time.monotonic()
    with pytest.raises(
        ServiceError,
        match=r"tracking\.uri: no MLflow server answers at http://127\.0\.0\.1:9.*make up",
    ):
        tracking.check("http://127.0.0.1:9")
    assert time.monotonic() - started < SECONDS


def test_a_server_that_accepts_and_says_nothing_is_named_within_seconds():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(ServiceError, match="no MLflow server answers"):
            tracking.check(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (200, "<html>hello</html>", ServiceError, "is not a working MLflow server"),
        (500, '{"error_code": "INTERNAL_ERROR"}', ServiceError, "status 500"),
        (401, "who are you", ConfigError, "MLFLOW_TRACKING_USERNAME"),
        (200, '{"experiment": {}}', None, ""),
        (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST"}', None, ""),
    ],
)
def test_what_answers_must_be_mlflow(status, body, error, words):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        if error is None:
            tracking.check(uri)
        else:
            with pytest.raises(error, match=words):
                tracking.check(uri)


def test_a_dead_database_is_named():
    with pytest.raises(ServiceError, match=r"no database answers at postgresql://\*\*\*@127\.0\.0\.1:9/mlflow"):
        tracking.check("postgresql://me@127.0.0.1:9/mlflow")


@pytest.mark.parametrize(
    "uri", ["postgresql://me:hunter2@127.0.0.1:9/mlflow", "https://me:hunter2@host", "mysql://h/x?password=hunter2"]
)
def test_a_password_in_the_uri_is_refused_and_not_repeated(uri):
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_USERNAME") as caught:
        tracking.check(uri)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    with pytest.raises(ConfigError, match="cannot be used as a SQLite database .*: move it away"):
        tracking.check(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_missing_database_holds_nothing_and_stays_missing(tmp_path):
    assert not tracking.holds(f"sqlite:///{tmp_path}/mlflow.db", ["a"])
    assert not list(tmp_path.iterdir())


def test_check_needs_no_mlflow():
    uri = "sqlite:////tmp/x.db"
    asked = f"import sys, iris_core.tracking as t; t.check('{uri}'); t.holds('{uri}', ['a'])"
    code = f"{asked}; assert 'mlflow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hunter2@host/x", "https://***@host/x"),
        (
            "uri: postgresql://me@db/x?password=hunter2&sslmode=off",
            "uri: postgresql://***@db/x?password=***&sslmode=off",
        ),
        ("mail me@host, http://host/a@b", "mail me@host, http://host/a@b"),
    ],
)
def test_redact(text, shown):
    assert connection.redact(text) == shown


def test_a_run_is_found_again_and_the_older_of_two_wins(sqlite, tmp_path):
    _, client = sqlite
    experiment = get_or_create_experiment(client, "runs", tmp_path)
    assert get_or_create_experiment(client, "runs", tmp_path) == experiment
    first = get_or_create_run(client, experiment, "a", {"iris.key": "1"}, 1000)
    assert get_or_create_run(client, experiment, "a", {"iris.key": "1"}, 2000) == first
    assert get_or_create_run(client, experiment, "a", {"iris.key": "2"}, 2000) != first


def test_points_and_params_are_logged_once(sqlite, tmp_path):
    _, client = sqlite
    experiment = get_or_create_experiment(client, "points", tmp_path)
    run = get_or_create_run(client, experiment, "a", {"iris.key": "1"}, 1000)
    points = [Metric("x", value, 1000 + step, step) for step, value in enumerate([0.5, float("nan"), 0.25])]
    assert log_points(client, run, points) == 3
    again = [Metric(point.key, point.value, point.timestamp + 7, point.step) for point in points]
    assert log_points(client, run, again) == 0
    assert log_points(client, run, [Metric("x", 0.75, 5000, 3)]) == 1
    assert len(client.get_metric_history(run, "x")) == 4
    log_params(client, run, {"a": "1", "b": "x" * 9000})
    log_params(client, run, {"a": "2", "b": "x" * 9000, "c": "3"})
    data = client.get_run(run).data
    assert (data.params["a"], data.tags["changed.a"], data.params["c"]) == ("1", "2", "3")
    assert "changed.b" not in data.tags


def test_a_deleted_experiment_says_how_to_restore_it(sqlite, tmp_path):
    _, client = sqlite
    client.delete_experiment(get_or_create_experiment(client, "gone", tmp_path))
    with pytest.raises(ConfigError, match="mlflow experiments restore"):
        get_or_create_experiment(client, "gone", tmp_path)


def test_a_kill_while_the_tables_are_made_leaves_no_wreck(tmp_path):
    code = f"from iris_core import tracking; tracking.connect('sqlite:///{tmp_path}/mlflow.db')"
    unfinished = tmp_path / ".mlflow.db.new"
    while not unfinished.exists():  # on a busy machine it may be finished before anybody looks
        (tmp_path / "mlflow.db").unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while process.poll() is None and size(unfinished) < 20_000:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert tracking.connect(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    assert not unfinished.exists()


def size(file: Path) -> int:
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def test_two_processes_make_one_database(tmp_path):
    code = f"from iris_core import tracking; tracking.connect('sqlite:///{tmp_path}/mlflow.db')"
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()


@pytest.mark.integration
def test_a_server_that_does_not_know_its_name_says_so(mlflow_server: str) -> None:
    uri = mlflow_server.replace("127.0.0.1", "127.1")  # the same address, another name
    with pytest.raises(ConfigError, match=r"127\.1:\d+ does not answer to this name"):
        tracking.check(uri)
