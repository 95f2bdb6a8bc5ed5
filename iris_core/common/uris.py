"""MLflow tracking URIs: SQLite files, servers and databases."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from iris_core.common.redaction import REFUSED, carries_secret

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def sqlite_uri(file: Path, driver: str = "sqlite") -> str:
    """The URI of a SQLite file for SQLAlchemy, whatever characters the path has."""
    path = str(file.absolute()).replace("%", "%25").replace("?", "%3F")
    return f"{driver}:///{path}"


def sqlite_file(uri: str) -> Path:
    """The file of a SQLite URI."""
    return Path(unquote(re.sub(r"^sqlite(\+\w+)?:///", "", uri).split("?")[0]))


def scheme(uri: str) -> str:
    """The scheme of `uri` without a driver: "postgresql" for "postgresql+psycopg2://…", "" for a path."""
    return uri.split(":", 1)[0].split("+", 1)[0] if ":" in uri else ""


def problem(uri: str) -> str | None:
    """What is wrong with `uri` as MLflow's tracking URI, and the remedy; None if nothing is. Never repeats `uri`."""
    if carries_secret(uri):
        return REFUSED
    kind = scheme(uri)
    if uri.startswith("databricks"):
        return None
    if kind in ("", "file") or re.match(r"[A-Za-z]:[\\/]", uri):
        return (
            "a path is a file store, which cannot hold model versions: use sqlite:////folder/mlflow.db, "
            "the URL of an MLflow server, or leave it out for SQLite inside the store"
        )
    if kind == "sqlite":
        return _sqlite_problem(uri)
    if kind not in ("http", "https", *DATABASE_PORTS):
        return f"unknown scheme; known: http, https, sqlite, {', '.join(DATABASE_PORTS)}"
    return _server_problem(uri)


def _sqlite_problem(uri: str) -> str | None:
    name = re.sub(r"^sqlite(\+\w+)?:(///)?", "", uri).split("?")[0]
    if ":///" in uri and name.strip("/") and name != ":memory:":
        return None
    return "names no file: write sqlite:////folder/mlflow.db (four slashes), or leave it out"


def _server_problem(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        port, host = parts.port, parts.hostname
    except ValueError:
        return "host or port cannot be read: write it as http://host:5000"
    if "@" in parts.path + parts.query + parts.fragment:  # a password that looks like a port
        return REFUSED
    if not host or re.search(r"\s", uri) or port == 0:
        return f"names no host: write it as {scheme(uri)}://host:{DATABASE_PORTS.get(scheme(uri), 5000)}"
    if parts.fragment or (parts.query and scheme(uri) in ("http", "https")):
        return "has a query or fragment, which no MLflow server has: write it as http://host:5000"
    return None
