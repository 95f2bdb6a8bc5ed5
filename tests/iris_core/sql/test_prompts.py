"""Schemas as they are read and written, and what is left of them in a short prompt."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iris_core.common.errors import DataError
from iris_core.sql.prompts import Budget, prompt, schema_text
from iris_core.sql.schema import Table, quoted, read_schema

pytestmark = pytest.mark.unit

DDL = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, "first name" TEXT, age INT, photo BLOB);
CREATE TABLE concert (id INTEGER PRIMARY KEY, singer_id INTEGER REFERENCES singer(id), year, venue VARCHAR(20));
CREATE TABLE empty (a TEXT, b TEXT, PRIMARY KEY (a, b));
INSERT INTO singer VALUES (1, 'Ann''s', 30, x'00'), (2, 'Joe', 30, NULL), (3, 'Ida', 41, x'01'), (4, 'Max', 52, NULL);
INSERT INTO singer VALUES (5, 'Zoe', 63, NULL);
INSERT INTO concert VALUES (1, 2, 2014, 'a venue with a name that is much too long for a prompt'), (2, 1, 2015, 'Hall');
"""
WHOLE = """Database music:
singer(id integer key, "first name" text: 'Ann''s' 'Joe' 'Ida', age int: 30 41 52, photo blob)
concert(id integer key, singer_id integer -> singer.id, year: 2014 2015, venue varchar(20): 'Hall')
empty(a text key, b text key)"""


@pytest.fixture
def tables(tmp_path: Path) -> list[Table]:
    with closing(sqlite3.connect(tmp_path / "music.sqlite")) as connection:
        connection.executescript(DDL)
    return read_schema(tmp_path / "music.sqlite")


def test_generated_columns_are_columns(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "d.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (2 * a) STORED, c INT AS (a + 1));"
            "INSERT INTO t (a) VALUES (3)"
        )
    assert schema_text("d", read_schema(tmp_path / "d.sqlite")).splitlines()[1] == "t(a int: 3, b int: 6, c int: 4)"


def test_a_schema_without_the_changes_that_wait_beside_its_file_is_not_read(tmp_path: Path) -> None:
    """It would lack tables that the questions are about."""
    file = tmp_path / "d.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("CREATE TABLE t (a); PRAGMA journal_mode = WAL; CREATE TABLE u (b)")
        with pytest.raises(DataError, match=r"d\.sqlite is not all of the database, d\.sqlite-wal beside it holds"):
            read_schema(file)
    assert [table.name for table in read_schema(file)] == ["t", "u"]


def test_names_that_sql_would_not_take_as_they_are_written_are_quoted() -> None:
    found = {name: quoted(name) for name in ("year", "order", "Group", "current_date", "a b", "café", 'a"b', "match")}
    assert found == {
        "year": "year",
        "order": '"order"',
        "Group": '"Group"',
        "current_date": '"current_date"',
        "a b": '"a b"',
        "café": '"café"',
        'a"b': '"a""b"',
        "match": "match",
    }


def test_samples_that_a_query_cannot_contain_are_left_out(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "d.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('x' || char(0)), ('x' || char(10) || 'y');"
            "INSERT INTO t VALUES (CAST(x'e4' AS TEXT)), ('é'), ('1')"
        )
    assert schema_text("d", read_schema(tmp_path / "d.sqlite")).splitlines()[1] == "t(a text: 'é' '1')"


def words(most: int) -> Budget:
    return Budget(lambda text: len(text.split()), most)


def test_whole_schema(tables: list[Table]) -> None:
    assert schema_text("music", tables) == WHOLE


def test_prompt(tables: list[Table]) -> None:
    found = prompt("music", tables, "How old is Joe?", words(1000), evidence="old refers to age")
    assert found == (
        f"{WHOLE}\nAnswer with one SQLite query and nothing else.\nQuestion: How old is Joe?\nHint: old refers to age",
        "all",
        True,
    )


@pytest.mark.parametrize(
    ("most", "detail", "line"),
    [
        (53, "all", "singer(id integer key, \"first name\" text: 'Ann''s' 'Joe' 'Ida', age int: 30 41 52, photo blob)"),
        (48, "1 sample value", "singer(id integer key, \"first name\" text: 'Ann''s', age int: 30, photo blob)"),
        (44, "no sample values", 'singer(id integer key, "first name" text, age int, photo blob)'),
        (35, "no types", 'singer(id key, "first name", age, photo)'),
        (26, "related columns only", "singer(id key, age)"),
    ],
)
def test_least_useful_parts_go_first(tables: list[Table], most: int, detail: str, line: str) -> None:
    found = prompt("music", tables, "What is the age of all singers?", words(most))
    assert found.detail == detail
    assert found.text.splitlines()[1] == line
    assert found.fits
    assert len(found.text.split()) <= most


def test_related_tables_keep_their_keys(tables: list[Table]) -> None:
    found = prompt("music", tables, "Which singer sang in the year 2014?", words(1))
    assert not found.fits
    assert found.text.splitlines()[1:3] == ["singer(id key)", "concert(id key, singer_id -> singer.id, year)"]


def test_tables_that_join_related_ones_are_kept(tmp_path: Path) -> None:
    """Names with digits count whole, as those of BIRD's database financial."""
    with closing(sqlite3.connect(tmp_path / "d.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT);"
            "CREATE TABLE song (id INTEGER PRIMARY KEY, A11 INTEGER, A12 INTEGER);"
            "CREATE TABLE made (s INTEGER REFERENCES Singer(id), t INTEGER REFERENCES song, note TEXT);"
            "CREATE TABLE fan (s INTEGER REFERENCES singer(id), age INTEGER);"
            'CREATE TABLE "big hall" (id INTEGER PRIMARY KEY, seats INTEGER);'
            'CREATE TABLE played (t INTEGER REFERENCES song, h INTEGER REFERENCES "big hall"(id))'
        )
    tables = read_schema(tmp_path / "d.sqlite")
    found = prompt("d", tables, "Which singers have A11 over 3?", words(1))
    assert found.text.splitlines()[1:4] == ["singer(id key)", "song(id key, A11)", "made(s -> Singer.id, t -> song)"]
    found = prompt("d", tables, "Which seats had a song?", words(1))
    assert found.text.splitlines()[1:4] == [
        "song(id key)",
        '"big hall"(id key, seats)',
        'played(t -> song, h -> "big hall".id)',
    ]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    file.write_text("not a database " * 100)
    with pytest.raises(DataError, match="cannot be read as a SQLite database"):
        read_schema(file)
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    with pytest.raises(DataError, match="has no table"):
        read_schema(tmp_path / "empty.sqlite")
