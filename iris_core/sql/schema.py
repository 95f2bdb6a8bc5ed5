"""The schema of a SQLite database: tables, columns with types, keys, and a few values of each column."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from iris_core.common.errors import DataError

MOST_SAMPLES = 3  # values of a column
LONGEST_SAMPLE = 40  # characters
HIDDEN = 1  # in PRAGMA table_xinfo: a column of a virtual table that is none of its own
SAMPLED_ROWS = 1000  # of a table, in which different values are looked for


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: as the schema writes it.
        type: declared, in lower case; "" where there is none.
        key: whether it is part of the primary key.
        refers: "table.column" of a foreign key, or None.
        samples: different values as SQL literals, at most `MOST_SAMPLES`.
    """

    name: str
    type: str
    key: bool
    refers: str | None
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with its columns, in the order of the schema."""

    name: str
    columns: tuple[Column, ...]


def read_schema(database: Path) -> list[Table]:
    """The tables of a database that the user gave, in the order of their creation.

    Raises:
        DataError: the file is no SQLite database, has no table, or is not all of the database.
    """
    check_complete(database)
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            connection.text_factory = lambda text: text.decode(errors="replace")
            names = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            )
            tables = [_table(connection, name) for (name,) in names.fetchall()]
    except (sqlite3.Error, UnicodeDecodeError) as error:  # names of columns may be in no known encoding
        raise DataError(f"{database} cannot be read as a SQLite database ({error}): replace it") from error
    if not tables:
        raise DataError(f"{database} has no table: replace it, or remove it with its questions")
    return tables


def check_complete(database: Path) -> None:
    """Checks that no changes of a database wait in a file beside it, which a reader of one file would not see.

    Raises:
        DataError: they do.
    """
    log = Path(f"{database.resolve()}-wal")
    if log.is_file() and log.stat().st_size:
        raise DataError(
            f"{database} is not all of the database, {log.name} beside it holds changes: close the program that writes "
            "there, or run PRAGMA wal_checkpoint(TRUNCATE) on it"
        )


def quoted(name: str) -> str:
    """A name as SQL writes it: between double quotes where it is not a plain word, or is a keyword."""
    return name if _is_plain(name) else '"' + name.replace('"', '""') + '"'


@cache
def _is_plain(name: str) -> bool:
    """Whether SQLite takes `name` for a table and its column; it has no other list of its keywords."""
    if not (name.isidentifier() and name.isascii()):
        return False
    query = f"WITH {name}({name}) AS (SELECT 7) SELECT {name} FROM {name} WHERE {name} = 7"
    try:
        with closing(sqlite3.connect(":memory:")) as connection:
            return connection.execute(query).fetchall() == [(7,)]  # current_date and true have other values
    except sqlite3.Error:
        return False


def _table(connection: sqlite3.Connection, name: str) -> Table:
    source = '"' + name.replace('"', '""') + '"'
    keys = connection.execute(f"PRAGMA foreign_key_list({source})").fetchall()
    refers = {
        column: f"{quoted(table)}.{quoted(other)}" if other else quoted(table)
        for _, _, table, column, other, *_ in keys
    }
    # generated columns too, which `SELECT *` has; those that a virtual table hides it has not
    columns = [row for row in connection.execute(f"PRAGMA table_xinfo({source})") if row[6] != HIDDEN]
    rows = connection.execute(f"SELECT * FROM {source} LIMIT {SAMPLED_ROWS}").fetchall()
    values: list[Any] = list(zip(*rows, strict=True)) or [()] * len(columns)
    return Table(
        name,
        tuple(
            Column(column, kind.lower(), bool(key), refers.get(column), _samples(found))
            for (_, column, kind, _, _, key, _), found in zip(columns, values, strict=True)
        ),
    )


def _samples(values: tuple[Any, ...]) -> tuple[str, ...]:
    """The first different values as SQL literals, without blobs, long text and what a query cannot contain."""
    usable = [value for value in values if isinstance(value, int | float | str) and _is_sample(str(value))]
    literals = (str(value) if not isinstance(value, str) else "'" + value.replace("'", "''") + "'" for value in usable)
    return tuple(list(dict.fromkeys(literals))[:MOST_SAMPLES])


def _is_sample(text: str) -> bool:
    """Whether a value is short, on one line and was UTF-8."""
    return len(text) <= LONGEST_SAMPLE and text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text
