"""Executes one query on a SQLite file. The query may be anything that a model writes.

    rows = execute(Path("database/pets/pets.sqlite"), "SELECT name FROM pet", Limits())

The file is opened read-only and as immutable: SQLite writes no journal beside it. An authorizer allows reading and
nothing else. SQLite's own limits bound the statement, the size of a value and the memory; a progress handler bounds the
time. SQLite calls that handler between the steps of its program, not inside a function: whoever executes queries that
they have not written does so in a process with limits of its own, too.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_core.sql.statements import without_start

Row = tuple[Any, ...]

STEPS = 1000  # of SQLite's virtual machine between two looks at the clock
LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,  # bytes
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
SETTINGS = (
    "PRAGMA query_only = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA mmap_size = 0",
    "PRAGMA temp_store = MEMORY",  # a large sort reaches the limit of memory, and no file
    "SELECT 1 FROM json_each('[]'), json_tree('[]')",  # declares these tables, which the authorizer would refuse
)
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
FORBIDDEN_FUNCTIONS = {
    "load_extension",
    "random",
    "randomblob",
    "fts3_tokenizer",
}  # the two give other results each time
OPENS = ("OpenRead", "ReopenIdx")  # instructions of SQLite's virtual machine that open a table or an index
FAULTS_OF_FILES = {  # which another look may not find
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
}


@dataclass(frozen=True)
class Limits:
    """What one query may take.

    Attributes:
        seconds: of execution.
        rows: of its result.
        value_bytes: of one value.
        result_bytes: of all values of the result.
        memory_bytes: of SQLite, for all connections of the process.
    """

    seconds: float = 10.0
    rows: int = 100_000
    value_bytes: int = 1_000_000
    result_bytes: int = 16_000_000
    memory_bytes: int = 256_000_000


class QueryFailed(Exception):
    """A query has no result: SQLite refuses it, or it is over a limit. The text says why, in one line."""


class QueryStopped(QueryFailed):
    """A query was stopped by something else than itself: time, memory, or its database's file."""


def execute(database: Path, query: str, limits: Limits) -> list[Row]:
    """The rows of the result of `query`, in SQLite's order.

    Args:
        database: a SQLite file; it is not changed.
        query: one statement.
        limits: what it may take.

    Raises:
        QueryFailed: the statement is no query, is several, has an error, needs more than reading, or is over a limit.
        QueryStopped: it needs more time or memory, or the database cannot be read.
    """
    with _errors(limits), closing(_open(database, limits)) as connection:
        cursor = connection.execute(query)
        if cursor.description is None:
            raise QueryFailed("it is not a query")
        return list(_within(cursor, limits))


def reads_data(database: Path, query: str, limits: Limits) -> bool:
    """Whether a query that has a result reads a table of the database: SQLite's program for it opens one.

    Args:
        database: as of `execute`.
        query: one that `execute` has run.
        limits: as of `execute`.

    Raises:
        QueryStopped: the database cannot be read, or SQLite does not explain the query.
    """
    with _errors(limits), closing(_open(database, limits)) as connection:
        try:
            program = connection.execute(f"EXPLAIN {without_start(query)}").fetchall()
        except sqlite3.Error as error:
            raise QueryStopped(f"it cannot be explained: {error}") from None
        # of the database itself (0), and not its schema (page 1); columns are addr, opcode, p1, p2, p3, …
        return any(row[1] in OPENS and row[4] == 0 and row[3] > 1 for row in program)


def database_file(folder: Path, db_id: str) -> Path:
    """The file of a database in a folder as Spider has it: `<db_id>/<db_id>.sqlite`.

    Raises:
        QueryFailed: `db_id` is no plain name, or there is no such file.
    """
    plain = db_id not in ("", ".", "..") and not set(db_id) & set("/\\\0")
    file = folder / db_id / f"{db_id}.sqlite"
    if not plain or not file.is_file():
        raise QueryFailed(f"there is no database {db_id!r} in {folder}")
    return file


def _open(database: Path, limits: Limits) -> sqlite3.Connection:
    if not database.is_file():
        raise QueryStopped(f"there is no database {database}")
    uri = f"{database.absolute().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda text: text.decode(errors="replace")  # some databases of Spider are not UTF-8
    for category, limit in {**LIMITS, sqlite3.SQLITE_LIMIT_LENGTH: limits.value_bytes}.items():
        connection.setlimit(category, limit)
    for setting in (*SETTINGS, f"PRAGMA hard_heap_limit = {limits.memory_bytes}"):
        connection.execute(setting)
    end = time.monotonic() + limits.seconds
    connection.set_progress_handler(lambda: time.monotonic() > end, STEPS)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, first: str | None, second: str | None, database: str | None, inside: str | None) -> int:
    allowed = action in ALLOWED
    if action == sqlite3.SQLITE_FUNCTION and second is not None:
        allowed = second.lower() not in FORBIDDEN_FUNCTIONS
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


@contextmanager
def _errors(limits: Limits) -> Iterator[None]:
    """SQLite's errors as `QueryFailed`."""
    try:
        yield
    except MemoryError:
        raise QueryStopped(f"memory: it needs more than {limits.memory_bytes:,} bytes") from None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        text = " ".join(str(error).split())[:200]
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_INTERRUPT:
            raise QueryStopped(f"timeout: it ran longer than {limits.seconds:g} s") from None
        raise (QueryStopped if code & 0xFF in FAULTS_OF_FILES else QueryFailed)(text) from None


def _within(rows: sqlite3.Cursor, limits: Limits) -> Iterator[Row]:
    size = 0
    for number, row in enumerate(rows):
        size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if number == limits.rows or size > limits.result_bytes:
            raise QueryFailed(f"its result has more than {limits.rows:,} rows or {limits.result_bytes:,} bytes")
        yield row
