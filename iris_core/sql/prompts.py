"""The prompt of text-to-SQL: the schema of a database and a question, within a number of tokens.

    singer(id integer key, name text, age integer: 31 40)
    concert(id integer key, singer_id integer -> singer.id, year integer: 2014)

A schema that is too long for the prompt is written with less detail, level by level: fewer sample values, none, no
types, then only tables and columns that the question may mean, with the keys and the tables that join them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from iris_core.sql.schema import Column, Table, quoted

INSTRUCTION = "Answer with one SQLite query and nothing else."
STEM = 4  # letters by which words count as the same: singer, singers, singing


class Detail(NamedTuple):
    """How much of a schema is written."""

    name: str
    samples: int
    types: bool = True
    related_only: bool = False


DETAILS = (
    Detail("all", 3),
    Detail("1 sample value", 1),
    Detail("no sample values", 0),
    Detail("no types", 0, types=False),
    Detail("related columns only", 0, types=False, related_only=True),
)


class Prompt(NamedTuple):
    """A prompt, the detail of its schema, and whether it is within the limit."""

    text: str
    detail: str
    fits: bool


class Budget(NamedTuple):
    """How long a prompt may be: a function that counts the tokens of a text, and the most there may be."""

    count: Callable[[str], int]
    most: int


def prompt(db_id: str, tables: list[Table], question: str, budget: Budget, evidence: str = "") -> Prompt:
    """The prompt for one question.

    Args:
        db_id: the database's name.
        tables: its schema.
        question: in words.
        budget: of the prompt.
        evidence: a hint that comes with the question, as in BIRD; "" for none.
    """
    asked = f"Question: {question}" + (f"\nHint: {evidence}" if evidence else "")
    return with_schema(db_id, tables, f"{INSTRUCTION}\n{asked}", budget, about=asked)


def with_schema(db_id: str, tables: list[Table], task: str, budget: Budget, about: str) -> Prompt:
    """A prompt of a schema and a task, with as much of the schema as fits.

    Args:
        db_id: the database's name.
        tables: its schema.
        task: what follows the schema.
        budget: of the prompt.
        about: the words that decide which columns are left where not all fit.
    """
    for detail in DETAILS:
        text = f"{schema_text(db_id, tables, detail, about)}\n{task}"
        if budget.count(text) <= budget.most:
            return Prompt(text, detail.name, fits=True)
    return Prompt(text, detail.name, fits=False)


def schema_text(db_id: str, tables: list[Table], detail: Detail = DETAILS[0], question: str = "") -> str:
    """The schema as text, a line for each table."""
    chosen = related(tables, question) if detail.related_only else tables
    lines = [
        f"{quoted(table.name)}({', '.join(_column(column, detail) for column in table.columns)})" for table in chosen
    ]
    return "\n".join([f"Database {db_id}:", *lines])


def related(tables: list[Table], question: str) -> list[Table]:
    """The tables and columns that share a word with `question`, and those that join two such tables, with all keys.

    All tables if none shares a word.
    """
    asked = _stems(question)
    chosen = {each for each in tables if any(_stems(name) & asked for name in (each.name, *_names(each)))}
    joining = {each for each in tables if sum(_refers(each, other) or _refers(other, each) for other in chosen) > 1}
    found = []
    for table in tables:
        if table in chosen | joining:
            kept = tuple(each for each in table.columns if each.key or each.refers or _stems(each.name) & asked)
            found.append(Table(table.name, kept or table.columns))
    return found or tables


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def _refers(table: Table, other: Table) -> bool:
    """Whether a key of `table` refers to `other`."""
    keys, name = (column.refers.lower() for column in table.columns if column.refers), quoted(other.name).lower()
    return any(key == name or key.startswith(f"{name}.") for key in keys)


def _column(column: Column, detail: Detail) -> str:
    parts = [quoted(column.name)]
    if detail.types and column.type:
        parts.append(column.type)
    if column.key:
        parts.append("key")
    if column.refers:
        parts.append(f"-> {column.refers}")
    text = " ".join(parts)
    is_key = column.key or column.refers
    samples = [] if is_key else column.samples[: detail.samples]
    return f"{text}: {' '.join(samples)}" if samples else text


def _stems(text: str) -> set[str]:
    """The first letters of the words in a text or name, without short words; names with a digit, as A11, whole."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text))
    numbered = re.findall(r"\w*\d\w*", text)
    return {word.lower()[:STEM] for word in words if len(word) > 2} | {word.lower() for word in numbered}
