"""Addresses of SQLite files with any character in their path, and text without the secrets of URIs in it."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from iris_core import tracking
from iris_core.common.redaction import redact
from iris_core.common.uris import sqlite_file, sqlite_uri

pytestmark = pytest.mark.unit

NAMES = [
    "run?1",
    "50%41",
    "a#b",
    "a b",
    "ä漢🙂",
    "a&b=c;d",
    "a'b\"c",
    "a@b:c",
    "[x]",
    "?mode=memory",
    "%",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_where_its_path_says(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "mlflow.db"
    file.parent.mkdir()
    uri = sqlite_uri(file)
    assert sqlite_file(uri) == file
    with create_engine(uri).begin() as connection:
        connection.execute(text("create table runs (run_uuid text, lifecycle_stage text)"))
        connection.execute(text("insert into runs values ('a', 'active')"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sqlite3.connect(file).execute("select run_uuid from runs").fetchall() == [("a",)]
    tracking.check(uri)
    assert tracking.holds(uri, ["a"])
    assert tracking.artifact_folder(uri, tmp_path) == file.parent / "mlflow-artifacts"


def test_the_longest_store_takes_a_database(tmp_path: Path) -> None:
    from iris_core.config.rules import LONGEST_STORE

    root = tmp_path
    while len(str(root)) + 101 < LONGEST_STORE:
        root /= "x" * 100
    root /= "x" * (LONGEST_STORE - len(str(root)) - 1)
    assert len(str(root)) == LONGEST_STORE
    (root / ".prefect").mkdir(parents=True)
    sqlite3.connect(root / ".prefect" / "prefect.db").execute("create table x (y)").close()


@pytest.mark.parametrize(
    ("shown", "secret"),
    [
        ("https://***@host/x", "me:hunter2"),
        ("https://***@host/x", "me:hun@ter2"),
        ("https://***@host/x", "me:hun/ter2"),
        ("https://***@host/x", "hunter2"),
    ],
)
def test_secrets_go(shown: str, secret: str) -> None:
    assert redact(shown.replace("***", secret)) == shown


@pytest.mark.parametrize("text", ["sqlite:////a@b/c@d", "http://host:5000/a@b", "me@host", "a: b@c"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
