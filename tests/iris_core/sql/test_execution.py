"""Queries that a model might write: useful ones have their rows; hostile ones fail within limits and change nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from iris_core.common.digest import file_digest
from iris_core.sql.execution import Limits, QueryFailed, QueryStopped, _errors, database_file, execute, reads_data

pytestmark = pytest.mark.unit

LIMITS = Limits(seconds=60)
ROWS = "more than 100,000 rows"
COUNT_UP = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT {} FROM c"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with a thousand rows, in a folder with special characters in its name."""
    folder = tmp_path / "a b?#%" / "pets"
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "pets.sqlite")) as connection:
        connection.execute('CREATE TABLE pet (id INTEGER PRIMARY KEY, "first name" TEXT, age REAL)')
        connection.executemany("INSERT INTO pet VALUES (?, ?, ?)", [(n, f"pet {n}", n / 2) for n in range(1000)])
        connection.commit()
    return folder / "pets.sqlite"


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT id, age FROM pet WHERE id < 2", [(0, 0.0), (1, 0.5)]),
        ('SELECT "first name" FROM "pet" WHERE [id] = 7 -- a comment; DROP TABLE pet', [("pet 7",)]),
        ("/* ; */ SELECT COUNT(*) FROM pet;", [(1000,)]),
        ("SELECT 'x; DROP TABLE pet'", [("x; DROP TABLE pet",)]),
        ("SELECT name FROM sqlite_master", [("pet",)]),
        ("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 3) SELECT n FROM c", [(1,), (2,), (3,)]),
        ("SELECT NULL, x'41', 9e999", [(None, b"A", float("inf"))]),
    ],
)
def test_rows(database: Path, query: str, rows: list[tuple[object, ...]]) -> None:
    assert execute(database, query, LIMITS) == rows


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("ATTACH '{folder}/other.sqlite' AS other", "not authorized"),
        ("ATTACH ':memory:' AS other", "not authorized"),
        ("PRAGMA journal_mode = WAL", "not authorized"),
        ("PRAGMA table_info(pet)", "not authorized"),
        ("PRAGMA hard_heap_limit = 0", "not authorized"),
        ("SELECT * FROM pragma_table_info('pet')", "not authorized"),
        ("SELECT load_extension('evil')", "not authorized to use function: load_extension"),
        ("SELECT writefile('{folder}/written', 'x')", "no such function"),
        ("SELECT readfile('/etc/passwd')", "no such function"),
        ("SELECT random()", "not authorized to use function: random"),
        ("DROP TABLE pet", "not authorized"),
        ("DELETE FROM pet", "not authorized"),
        ("UPDATE pet SET age = 1 RETURNING age", "not authorized"),
        ("INSERT INTO pet VALUES (5000, 'x', 1)", "not authorized"),
        ("CREATE TEMP TABLE x AS SELECT 1", "not authorized"),
        ("VACUUM INTO '{folder}/copy.sqlite'", "authorization denied"),
        ("BEGIN EXCLUSIVE", "not authorized"),
        ("SELECT 1; DROP TABLE pet", "one statement at a time"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("", "not a query"),
        ("-- nothing", "not a query"),
        ("I think the answer is 3", "syntax error"),
        ("SELECT 'a\0b'", "null character"),
        ("SELECT '\ud800'", "surrogates"),
        (COUNT_UP.format("COUNT(*)"), "longer than 0.3 s"),
        ("SELECT COUNT(*) FROM pet a, pet b, pet c", "longer than 0.3 s"),
        ("SELECT a.id FROM pet a, pet b, pet c ORDER BY b.age, c.age", "memory|longer"),
        ("SELECT a.id FROM pet a, pet b, pet c", ROWS),
        (COUNT_UP.format("n"), ROWS),
        ("SELECT zeroblob(1000000000)", "too big"),
        ("SELECT length(randomblob(1000000000))", "not authorized"),
        ('SELECT group_concat(a."first name" || b."first name") FROM pet a, pet b, pet c', "too big|longer"),
        ("SELECT " + ", ".join(["zeroblob(900000)"] * 100), "memory|bytes"),
        (
            "WITH RECURSIVE c(n) AS (SELECT zeroblob(500000) UNION SELECT n || 'x' FROM c) SELECT n FROM c",
            "memory|bytes",
        ),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "overflow|depth|too large"),
        ("SELECT " + "1 + " * 5000 + "1", "depth|too large"),
        ("SELECT " + "1 + " * 250 + "1", "maximum depth 200"),
        (" UNION ALL ".join(["SELECT 1"] * 51), "too many terms in compound SELECT"),
        ("SELECT 'a' LIKE '" + "%a" * 101 + "'", "pattern too complex"),
        ("SELECT '" + "x" * 200_000 + "'", "too large"),
    ],
)
def test_hostile_query_fails_and_changes_nothing(database: Path, query: str, reason: str) -> None:
    before, folder = file_digest(database), database.parent
    limits = replace(LIMITS, seconds=0.3) if "longer" in reason else LIMITS
    with pytest.raises(QueryFailed, match=reason):
        execute(database, query.replace("{folder}", str(folder)), limits)
    assert file_digest(database) == before
    assert [file.name for file in folder.iterdir()] == ["pets.sqlite"]


def test_a_damaged_or_missing_file(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with pytest.raises(QueryFailed, match=r"there is no database .*x\.sqlite"):
        execute(file, "SELECT 1", LIMITS)
    assert not file.exists()
    file.write_text("this is no database, but a text that is long enough to be taken for a header" * 20)
    with pytest.raises(QueryFailed, match="not a database"):
        execute(file, "SELECT * FROM t", LIMITS)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN])
def test_a_fault_of_a_file_is_not_the_querys(code: int) -> None:
    """Disks report theirs by extended codes."""
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    with pytest.raises(QueryStopped), _errors(LIMITS):
        raise error


def test_text_counts_by_its_length(database: Path) -> None:
    with pytest.raises(QueryFailed, match="1,000 bytes"):
        execute(database, "SELECT hex(zeroblob(300)) FROM pet LIMIT 2", Limits(result_bytes=1000))


def test_a_query_that_is_not_explained_decides_nothing(database: Path) -> None:
    with pytest.raises(QueryStopped, match="it cannot be explained: "):
        reads_data(database, "EXPLAIN SELECT 1", LIMITS)


def test_a_wide_table_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"CREATE TABLE t ({', '.join(f'c{n}' for n in range(300))})")
        connection.execute("INSERT INTO t (c299) VALUES (7)")
        connection.commit()
    assert execute(file, "SELECT * FROM t", LIMITS) == [(None,) * 299 + (7,)]


def test_text_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.execute("INSERT INTO t VALUES (CAST(x'4aff' AS TEXT))")
        connection.commit()
    assert execute(file, "SELECT a FROM t", LIMITS) == [("J\N{REPLACEMENT CHARACTER}",)]


@pytest.mark.parametrize("name", ["..", "../pets", "pets/../pets", "", "dogs", "pets\0"])
def test_names_that_are_no_database(database: Path, name: str) -> None:
    with pytest.raises(QueryFailed, match="there is no database"):
        database_file(database.parents[1], name)


def test_a_name_reaches_no_file_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "databases").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out.sqlite").touch()
    assert (tmp_path / "databases/../out/../out.sqlite").is_file()
    with pytest.raises(QueryFailed, match=r"there is no database '\.\./out'"):
        database_file(tmp_path / "databases", "../out")


def test_a_file_with_a_write_ahead_log_is_read_without_one(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (7)")
    before = tmp_path.stat().st_mtime_ns  # which a file beside it would change, even one that is removed again
    assert execute(file, "SELECT a FROM t", LIMITS) == [(7,)]
    assert tmp_path.stat().st_mtime_ns == before


def test_a_sort_is_within_the_limit_of_memory(database: Path) -> None:
    """In a process of its own: SQLite's limit is the process's, and cannot be raised again."""
    script = (
        "import sys; from pathlib import Path; from iris_core.sql.execution import *\n"
        "query = 'SELECT a.id FROM pet a, pet b ORDER BY b.age, a.age'\n"
        "try: execute(Path(sys.argv[1]), query, Limits(seconds=60, memory_bytes=4_000_000))\n"
        "except QueryFailed as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", script, str(database)], capture_output=True, text=True, check=True)
    assert found.stdout == "memory: it needs more than 4,000,000 bytes\n"


def test_file_of_a_database(database: Path) -> None:
    assert database_file(database.parents[1], "pets") == database
