"""Which queries and questions of a model are kept, and what it is asked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iris_core.sql.execution import Limits
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Question
from iris_core.sql.schema import read_schema
from iris_core.sql.synthesis import problem, queries_in, query_prompt, question_in, question_prompt

pytestmark = pytest.mark.unit

NAMES, AGES = "SELECT name FROM pet", "SELECT age FROM pet"
EXAMPLE = Question("other", "How many dogs are there?", "SELECT COUNT(*) FROM dog")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "pets.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE pet (name TEXT, age INTEGER)")
        connection.executemany("INSERT INTO pet VALUES (?, ?)", [(f"pet {n}", n % 7) for n in range(200)])
        connection.commit()
    return file


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT COUNT(*) FROM pet", ""),
        ("SELECT age, COUNT(*) FROM pet GROUP BY age", ""),
        ("SELECT name FROM pet WHERE age > 3 LIMIT 5", ""),
        ("SELECT * FROM pet LIMIT 5", ""),
        ("select T.name from PET as T where T.age = 6", "known"),
        ("SELECT name FROM pet", "large result"),
        ("SELECT name, name, name, name, name, age, age, age, age FROM pet LIMIT 1", "large result"),
        ("SELECT name FROM pet WHERE age > 90", "empty result"),
        ("SELECT MAX(age) FROM pet WHERE age > 90", "empty result"),
        ("SELECT COUNT(*) FROM pet WHERE age > 90", "empty result"),
        ("SELECT 1", "no column"),
        ("SELECT 'x' FROM pet LIMIT 1", "no column"),
        ("SELECT nam FROM pet", "does not run"),
        ("DROP TABLE pet", "not a query"),
        ("There are 200 pets.", "not a query"),
    ],
)
def test_queries(database: Path, query: str, expected: str) -> None:
    known = {"SELECT name FROM pet WHERE age = 6"}
    assert problem(database, query, known, Limits(seconds=60)) == expected


@pytest.mark.parametrize(
    ("response", "queries"),
    [
        ("SELECT name\nFROM pet\nWHERE age > 3;", ["SELECT name\nFROM pet\nWHERE age > 3"]),
        (f"{NAMES}\n{AGES};\nSELECT MAX(", [f"{NAMES}\n{AGES};\nSELECT MAX(", NAMES, AGES]),
        (f"1. `{NAMES}`;\n- {AGES}", [f"1. `{NAMES}`;\n- {AGES}", NAMES, AGES]),
        (f"```sql\n{NAMES};\n{AGES};\n```", [f"{NAMES};\n{AGES}", NAMES, AGES]),
        (NAMES, [NAMES]),
        ("There are 200 pets.", ["There are 200 pets."]),
        ("", [""]),
    ],
)
def test_queries_in_a_response(response: str, queries: list[str]) -> None:
    assert queries_in(response) == queries


@pytest.mark.parametrize(
    ("response", "question"),
    [
        ("How many pets are there?", "How many pets are there?"),
        (' Question: "How many pets are there?"\nAnswer: 200', "How many pets are there?"),
        ("List the names of all pets.", "List the names of all pets."),
        ("SELECT COUNT(*) FROM pet", ""),
        ("Pets?", ""),
        ("", ""),
        ("How many " + "very " * 80 + "old pets are there?", ""),
    ],
)
def test_questions(response: str, question: str) -> None:
    assert question_in(response) == question


def test_what_the_model_is_asked(database: Path) -> None:
    tables, long = read_schema(database), Budget(len, 1000)
    schema = "Database pets:\npet(name text: 'pet 0' 'pet 1' 'pet 2', age integer: 0 1 2)\n"
    assert query_prompt("pets", tables, [EXAMPLE], long) == (
        f"{schema}Queries on other databases:\nSELECT COUNT(*) FROM dog\n"
        "Write one other SQLite query on this database and nothing else."
    )
    asked = question_prompt(Question("pets", "", "SELECT name FROM pet"), tables, [EXAMPLE], long)
    assert asked == (
        f"{schema}Write the question that the last query answers, and nothing else.\n"
        "Query: SELECT COUNT(*) FROM dog\nQuestion: How many dogs are there?\nQuery: SELECT name FROM pet\nQuestion:"
    )
    assert query_prompt("pets", tables, [EXAMPLE], Budget(len, 10)) is None
