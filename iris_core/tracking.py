"""Where MLflow is: whether it can be used, and how to talk to it. What is logged there is in `mlflow_runs`.

    check("http://localhost:5000")                  # answers within seconds, or says what to do
    client = connect("sqlite:////data/mlflow.db")

MLflow is imported only by `connect` (it takes seconds): `check` and `holds` are cheap.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import filelock
import httpx

from iris_core import uris
from iris_core.errors import ConfigError, ServiceError
from iris_core.markup import plain
from iris_core.uris import DATABASE_PORTS, redact, sqlite_file, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECK_TIMEOUT_S = 3.0


def check(uri: str) -> None:
    """Finds out within seconds whether MLflow can be used at `uri`, before anything heavy starts.

    Raises:
        ConfigError: the URI is none that MLflow can use (see `uris.problem`), or the server refuses the credentials.
        ServiceError: nothing answers there, or what answers is not MLflow.
    """
    if problem := uris.problem(uri):
        raise ConfigError(f"tracking.uri: {problem}")
    scheme = uris.scheme(uri)
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in DATABASE_PORTS:
        _check_port(uri, DATABASE_PORTS[scheme])


def connect(uri: str) -> MlflowClient:
    """A client for tracking and registry at `uri`, checked; a new SQLite database gets its tables.

    `uri` becomes this process's default too: MLflow's registry looks models up there when it makes a version.

    Raises:
        ConfigError, ServiceError: as `check`.
    """
    check(uri)
    from mlflow import MlflowClient, set_tracking_uri

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"
    )  # MLflow's 7 take minutes; a stage is retried anyway
    set_tracking_uri(uri)
    with service_errors(uri):
        if uri.startswith("sqlite:"):
            _make_database(sqlite_file(uri))
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def service_errors(uri: str) -> Iterator[None]:
    """Turns a server that went away, and a database that cannot be used, into a ServiceError that may be retried."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        text = redact(str(error))
        if "out-of-date database schema" in text:
            raise ServiceError(
                f"tracking.uri: {redact(uri)} was made by another MLflow: type `mlflow db upgrade {redact(uri)}`"
            ) from error
        lost = isinstance(error, requests.RequestException) or error.error_code in (
            "INTERNAL_ERROR",
            "TEMPORARILY_UNAVAILABLE",
        )
        if not lost:
            raise
        raise ServiceError(
            f"tracking.uri: MLflow at {redact(uri)} failed ({text[:300]}): {_remedy(uri)}"
        ) from error


def holds(uri: str, runs: Sequence[str]) -> bool:
    """Whether MLflow at `uri` still has `runs`, none of them deleted.

    A model version that is gone does not count: old ones are deleted on purpose, and would come back as the latest. Where
    only MLflow itself can ask (databases other than SQLite), it is taken to have lost the runs: to record the same once
    more takes seconds and changes nothing.

    Raises:
        ServiceError: the server does not answer.
    """
    if uri.startswith("sqlite:"):
        return _database_holds(sqlite_file(uri), runs)
    return uri.startswith("http") and all(_server_holds(uri, run) for run in runs)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and texts: {"training": {"epochs": 2}} gives {"training.epochs": "2"}."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[prefix + name] = plain(redact(text))
    return flat


def artifact_folder(uri: str, otherwise: Path) -> Path:
    """Where artifacts of runs at `uri` lie when no server keeps them: beside a SQLite file, else `otherwise`."""
    return (
        sqlite_file(uri).parent if uri.startswith("sqlite:") else otherwise
    ) / "mlflow-artifacts"


def _remedy(uri: str) -> str:
    if uri.startswith("http"):
        return "start the server (`make up`), correct tracking.uri, or leave it out to keep runs in SQLite inside the store"
    return "correct tracking.uri, or leave it out to keep runs in SQLite inside the store"


def _check_server(uri: str) -> None:
    """Asks for the experiment `Default`: a server that knows it, or says it does not, is MLflow."""
    answer = _ask(uri, "experiments/get-by-name", {"experiment_name": "Default"})
    if answer.status_code in (401, 403):
        raise ConfigError(
            f"tracking.uri: {redact(uri)} refuses these credentials ({answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if answer.status_code >= 500 or not _is_mlflow(answer):
        raise ServiceError(
            f"tracking.uri: what answers at {redact(uri)} is not a working MLflow server (status {answer.status_code}): {_remedy(uri)}"
        )


def _ask(uri: str, endpoint: str, params: Mapping[str, str]) -> httpx.Response:
    """What the MLflow server at `uri` answers, asked with the credentials that MLflow would use."""
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true"
    headers = (
        {"Authorization": f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}"}
        if "MLFLOW_TRACKING_TOKEN" in os.environ
        else {}
    )
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    login = httpx.BasicAuth(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
    try:
        return httpx.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/{endpoint}",
            params=params,
            headers=headers,
            auth=login,
            timeout=CHECK_TIMEOUT_S,
            verify=not insecure,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(
            f"tracking.uri: no MLflow server answers at {redact(uri)} ({redact(str(error)) or type(error).__name__}): {_remedy(uri)}"
        ) from error


def _server_holds(uri: str, run: str) -> bool:
    """As `holds`. What is not answered as expected counts as lost: recording it again gives the right complaint."""
    answer = _ask(uri, "runs/get", {"run_id": run})
    return answer.is_success and answer.json()["run"]["info"]["lifecycle_stage"] == "active"


def _is_mlflow(answer: httpx.Response) -> bool:
    try:
        return bool({"experiment", "error_code"} & set(answer.json()))
    except ValueError:
        return False


def _make_database(file: Path) -> None:
    """Gives a missing SQLite file MLflow's tables, whole or not at all: a kill between its migrations leaves a wreck."""
    from mlflow import MlflowClient

    with filelock.FileLock(f"{file}.lock"):
        if file.exists():
            return
        unfinished = file.with_name(f".{file.name}.new")
        unfinished.unlink(missing_ok=True)
        MlflowClient(sqlite_uri(unfinished)).search_experiments(max_results=1)
        unfinished.rename(file)


def _check_sqlite(uri: str) -> None:
    file = sqlite_file(uri)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            sqlite3.connect(_opened(file, "rw"), uri=True, timeout=CHECK_TIMEOUT_S).execute(
                "pragma schema_version"
            ).close()
        elif not os.access(file.parent, os.W_OK):
            raise PermissionError(f"cannot write in {file.parent}")
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"tracking.uri: {file} cannot be used as a SQLite database ({error}): {_remedy(uri)}"
        ) from error


def _opened(file: Path, mode: str) -> str:
    """`file` as SQLite's own URI."""
    return f"{file.absolute().as_uri()}?mode={mode}"


def _database_holds(file: Path, runs: Sequence[str]) -> bool:
    """As `holds`, by the table that MLflow keeps them in; a missing file or table holds nothing."""
    query = "select 1 from runs where run_uuid = ? and lifecycle_stage = 'active'"
    try:
        with closing(
            sqlite3.connect(_opened(file, "ro"), uri=True, timeout=CHECK_TIMEOUT_S)
        ) as database:
            return all(database.execute(query, (run,)).fetchone() for run in runs)
    except sqlite3.Error:
        return False


def _check_port(uri: str, port: int) -> None:
    parts = urlsplit(uri)
    try:
        socket.create_connection(
            (parts.hostname or "localhost", parts.port or port), timeout=CHECK_TIMEOUT_S
        ).close()
    except OSError as error:
        raise ServiceError(
            f"tracking.uri: no database answers at {redact(uri)} ({error}): {_remedy(uri)}"
        ) from error
