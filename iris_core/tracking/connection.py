"""Where MLflow is, whether it can be used, and how to talk to it. `iris_core.tracking.runs` logs to it.

    check("http://localhost:5000")                  # answers within seconds, or says what to do
    client = connect("sqlite:////data/mlflow.db")

`check` and `holds` are fast: only `connect` imports MLflow, which takes seconds. An outage (nothing answers, a server
fails, a database is locked) is a ServiceError. What a person must change is a ConfigError.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import filelock

from iris_core.common import uris
from iris_core.common.errors import ConfigError, IrisError, ServiceError, StoreError
from iris_core.common.outages import wait_out
from iris_core.common.redaction import redact
from iris_core.common.uris import DATABASE_PORTS, sqlite_file, sqlite_uri

if TYPE_CHECKING:
    import httpx

    from iris_core.tracking.client import Client

CHECK_TIMEOUT_S = 3.0
OTHER_HOST = "Invalid Host header"  # MLflow refuses host names that are not among its --allowed-hosts
AWAY = (408, 429, *range(500, 600))  # statuses of a server that may answer later


def check(uri: str) -> None:
    """Finds out within seconds whether MLflow can be used at `uri`, before anything heavy starts.

    Raises:
        ConfigError: MLflow cannot use the URI (see `uris.problem`), or the server refuses the credentials.
        ServiceError: nothing answers there, or not MLflow.
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


def connect(uri: str, patience: float | None = None) -> Client:
    """A client for tracking and registry at `uri`, checked; a new SQLite database gets its tables.

    `uri` becomes this process's default too: MLflow's registry looks models up there when it makes a version.

    Args:
        uri: where MLflow is.
        patience: how long the client waits out an outage, in seconds, now and later; None: it only reads, and does not.

    Raises:
        ConfigError, ServiceError: as `check`.
    """
    if patience is None:
        # MLflow's 7 take minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    else:
        # MLflow would repeat a POST after a lost reply, which creates a thing twice; our client repeats whole steps
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    return wait_out(patience or 0.0, lambda: _connect(uri, patience or 0.0))


@contextmanager
def service_errors(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into ours: outages into a ServiceError that may be retried, others into a ConfigError."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError) as error:
        raise outage(uri, error) or _refusal(uri, error) from error


def outage(uri: str, error: Exception) -> ServiceError | None:
    """`error` as a ServiceError if MLflow at `uri` raised it during an outage, else None."""
    text = redact(str(error))
    away = "is locked" in text if uri.startswith("sqlite:") else _status(error) in AWAY
    if not away or "out-of-date database schema" in text:
        return None
    cause = text.rpartition("(Caused by ")[2].removesuffix(")")
    return ServiceError(f"tracking.uri: MLflow at {redact(uri)} failed ({cause[:300]}): {_remedy(uri)}")


def holds(uri: str, runs: Sequence[str], tag: tuple[str, str] | None = None) -> bool:
    """Whether MLflow at `uri` still has `runs`: none is deleted, and none has another value of `tag` (name and value).

    A run without that tag is of an earlier version, and counts.

    Missing model versions do not count: old ones are deleted on purpose, and would come back as the latest. Databases
    other than SQLite cannot be asked without MLflow, and count as having lost the runs: to record the same once more
    takes seconds and changes nothing.

    Raises:
        ServiceError: the server does not answer, or the database is locked.
    """
    if uri.startswith("sqlite:"):
        return _database_holds(sqlite_file(uri), runs, tag)
    return uri.startswith("http") and all(_server_holds(uri, run, tag) for run in runs)


def ask(uri: str, endpoint: str, params: Mapping[str, str], method: str = "GET") -> httpx.Response:
    """What the MLflow server at `uri` answers, asked with the credentials that MLflow would use.

    Raises:
        ServiceError: nothing answers there within seconds.
    """
    import httpx

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true"
    headers = (
        {"Authorization": f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}"}
        if "MLFLOW_TRACKING_TOKEN" in os.environ
        else {}
    )
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    login = httpx.BasicAuth(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
    request = functools.partial(
        httpx.request,
        method,
        f"{uri.rstrip('/')}/api/2.0/mlflow/{endpoint}",
        params=params if method == "GET" else None,
        json=None if method == "GET" else params,
        headers=headers,
        auth=login,
        timeout=CHECK_TIMEOUT_S,
        verify=not insecure,
    )
    try:
        return _although_replies_are_lost(request)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(
            f"tracking.uri: no MLflow server answers at {redact(uri)} ({redact(str(error)) or type(error).__name__}): "
            f"{_remedy(uri)}"
        ) from error


def _although_replies_are_lost(request: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer to `request`, which may be repeated; where a server hangs up without one, it is asked again, twice."""
    import httpx

    for _ in range(2):
        try:
            return request()
        except (httpx.RemoteProtocolError, httpx.ReadError):
            continue
    return request()


def answered(uri: str, answer: httpx.Response, name: str) -> dict[str, Any]:
    """The object called `name` in what the MLflow server at `uri` answered.

    Raises:
        ServiceError: there is none: a proxy or a login page answered in its place.
    """
    try:
        return dict(answer.json()[name])
    except (ValueError, LookupError, TypeError) as error:
        raise ServiceError(_no_mlflow(uri, answer)) from error


def query(file: Path, mode: str, statement: str, *values: str) -> list[tuple[Any, ...]]:
    """The rows that SQLite gives.

    Raises:
        ServiceError: another process keeps the database locked.
        sqlite3.Error: the file is no database, or a table is missing.
    """
    try:
        with closing(sqlite3.connect(_opened(file, mode), uri=True, timeout=CHECK_TIMEOUT_S)) as database:
            return database.execute(statement, values).fetchall()
    except sqlite3.OperationalError as error:
        if "is locked" not in str(error):
            raise
        raise ServiceError(
            f"tracking.uri: {file} is in use by another process ({error}): wait for it, or stop it"
        ) from error


def artifact_folder(uri: str, otherwise: Path) -> Path:
    """Where artifacts of runs at `uri` are kept without a server: beside a SQLite file, else in `otherwise`."""
    return (sqlite_file(uri).parent if uri.startswith("sqlite:") else otherwise) / "mlflow-artifacts"


def _connect(uri: str, patience: float) -> Client:
    check(uri)
    from mlflow import set_tracking_uri

    from iris_core.tracking.client import Client

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow.store.db.utils", "mlflow.store.model_registry.sqlalchemy_store"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a traceback for each error that is raised, too
    set_tracking_uri(uri)
    with service_errors(uri):
        if uri.startswith("sqlite:"):
            _make_database(sqlite_file(uri))
        client = Client(uri, patience)
        client.search_experiments(max_results=1)
    return client


def _status(error: Exception) -> int:
    """The HTTP status that `error` stands for; 503 where there was no answer."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    answer = getattr(error, "response", None)
    return 503 if answer is None else int(answer.status_code)


def _refusal(uri: str, error: Exception) -> IrisError:
    """The error for a request that MLflow at `uri` refuses: it says what a person must change."""
    text = redact(str(error))
    if "out-of-date database schema" in text:
        return ConfigError(
            f"tracking.uri: {redact(uri)} was made by another MLflow: type `mlflow db upgrade {redact(uri)}`"
        )
    if "disk is full" in text:
        return StoreError(f"the disk of {redact(uri)} is full: free some space, then run again to resume")
    if _status(error) in (401, 403):
        return _refused_login(uri, _status(error))
    return ConfigError(f"tracking.uri: MLflow at {redact(uri)} refuses ({text[:300]}): {_remedy(uri)}")


def _refused_login(uri: str, status: int) -> ConfigError:
    return ConfigError(
        f"tracking.uri: {redact(uri)} refuses these credentials ({status}): set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )


def _remedy(uri: str) -> str:
    start = "start the server (`make up`), " if uri.startswith("http") else ""
    return f"{start}correct tracking.uri, or leave it out to keep runs in SQLite inside the store"


def _check_server(uri: str) -> None:
    """Asks for the experiment `Default`: MLflow knows it, or says in its own form that it does not."""
    answer = ask(uri, "experiments/get-by-name", {"experiment_name": "Default"})
    if answer.status_code == 403 and OTHER_HOST in answer.text:
        raise ConfigError(
            f"tracking.uri: the MLflow server at {redact(uri)} does not answer to this name: use the name that it "
            "knows, or start it with that one among its --allowed-hosts"
        )
    if answer.status_code in (401, 403):
        raise _refused_login(uri, answer.status_code)
    if answer.status_code >= 500 or not _is_mlflow(answer):
        kind = ConfigError if answer.status_code == 404 else ServiceError
        raise kind(_no_mlflow(uri, answer))


def _no_mlflow(uri: str, answer: httpx.Response) -> str:
    return (
        f"tracking.uri: what answers at {redact(uri)} is not a working MLflow server (status {answer.status_code}): "
        f"{_remedy(uri)}"
    )


def _server_holds(uri: str, run: str, tag: tuple[str, str] | None) -> bool:
    """As `holds`, for one run. A refusal counts as lost: recording the run again then raises the right error."""
    answer = ask(uri, "runs/get", {"run_id": run})
    if answer.status_code in AWAY:
        raise ServiceError(
            f"tracking.uri: MLflow at {redact(uri)} failed (status {answer.status_code}): {_remedy(uri)}"
        )
    if not answer.is_success:
        return False
    held = answered(uri, answer, "run")
    tags = {each["key"]: each["value"] for each in held.get("data", {}).get("tags", [])}
    return held["info"]["lifecycle_stage"] == "active" and (tag is None or tags.get(tag[0], tag[1]) == tag[1])


def _is_mlflow(answer: httpx.Response) -> bool:
    try:
        return bool({"experiment", "error_code"} & set(answer.json()))
    except ValueError:
        return False


def _make_database(file: Path) -> None:
    """Creates a missing SQLite file with MLflow's tables, as a whole: a kill between migrations would damage it."""
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
        for place in (file.parent, *([file] if file.exists() else [])):
            if not os.access(place, os.W_OK):
                raise PermissionError(f"cannot write {place}")
        if file.exists():
            query(file, "rw", "pragma schema_version")
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"tracking.uri: {file} cannot be used as a SQLite database ({error}): move it away if it is damaged, "
            f"and what the store holds is registered again; else {_remedy(uri)}"
        ) from error


def _opened(file: Path, mode: str) -> str:
    """`file` as SQLite's own URI."""
    return f"{file.absolute().as_uri()}?mode={mode}"


def _database_holds(file: Path, runs: Sequence[str], tag: tuple[str, str] | None) -> bool:
    """As `holds`, by the tables that MLflow keeps them in; a missing file or table holds nothing."""
    wanted = "select 1 from runs where run_uuid = ? and lifecycle_stage = 'active'"
    if tag:
        wanted += " and not exists (select 1 from tags where run_uuid = runs.run_uuid and key = ? and value <> ?)"
    try:
        return all(query(file, "ro", wanted, run, *(tag or ())) for run in runs)
    except sqlite3.Error:
        return False


def _check_port(uri: str, port: int) -> None:
    parts = urlsplit(uri)
    try:
        socket.create_connection((parts.hostname or "localhost", parts.port or port), timeout=CHECK_TIMEOUT_S).close()
    except OSError as error:
        raise ServiceError(f"tracking.uri: no database answers at {redact(uri)} ({error}): {_remedy(uri)}") from error
