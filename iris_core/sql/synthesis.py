"""The parts of verification-based synthesis that need no model: prompts, and which queries and questions are kept.

SPFT-SQL (arXiv 2509.03937) fills templates of queries with columns and values of a schema and lets a model describe
them; here the model writes the queries, too. `iris_core.synthesize_sql` runs the model.
"""

from __future__ import annotations

import re
from pathlib import Path

from iris_core.sql.execution import Limits, QueryFailed, Row, execute, reads_data
from iris_core.sql.prompts import Budget, with_schema
from iris_core.sql.questions import Question
from iris_core.sql.results import tells_something
from iris_core.sql.schema import Table
from iris_core.sql.statements import NotParsed, is_constant, normal_form, query_in

MAX_ROWS, MAX_COLUMNS = 100, 8  # of a result that somebody would ask for
LONGEST_QUESTION = 300  # characters
QUERY_LINE = re.compile(r"(select|with)\b.*\bfrom\b", re.IGNORECASE)
LIST_MARK = re.compile(r"^[\s\d.)*`-]+")  # before a query in a list


def query_prompt(db_id: str, tables: list[Table], examples: list[Question], budget: Budget) -> str | None:
    """Asks for a new query; `examples` are of other databases. None if that is too long."""
    lines = "\n".join(example.query for example in examples)
    task = f"Queries on other databases:\n{lines}\nWrite one other SQLite query on this database and nothing else."
    found = with_schema(db_id, tables, task, budget, about="")
    return found.text if found.fits else None


def queries_in(response: str) -> list[str]:
    """What may be a query in a response: all of it, and each line that begins like one.

    After examples, each on its line, a model often writes several. Nothing is parsed: a response may be anything.
    """
    whole = query_in(response)
    lines = (LIST_MARK.sub("", line).rstrip("; `") for line in whole.splitlines())
    return list(dict.fromkeys([whole, *(line for line in lines if QUERY_LINE.match(line))]))


def question_prompt(candidate: Question, tables: list[Table], examples: list[Question], budget: Budget) -> str | None:
    """Asks which question the candidate's query answers. None if that is too long."""
    query = candidate.query
    lines = "\n".join(f"Query: {example.query}\nQuestion: {example.question}" for example in examples)
    task = f"Write the question that the last query answers, and nothing else.\n{lines}\nQuery: {query}\nQuestion:"
    found = with_schema(candidate.db_id, tables, task, budget, about=query)
    return found.text if found.fits else None


def question_in(response: str) -> str:
    """The question in a response: its first line, without a name before it; "" if it is none that could be asked."""
    first = next(iter(response.strip().splitlines()), "").strip()
    text = re.sub(r"^(question|q)\s*:\s*", "", first, flags=re.IGNORECASE).strip("\"'` ")
    asks = len(text.split()) >= 3 and len(text) <= LONGEST_QUESTION and not re.match(r"select\b", text, re.IGNORECASE)
    return text if asks else ""


def problem(database: Path, query: str, known: set[str], limits: Limits) -> str:
    """Why a query is not worth a question; "" if it is. `known` holds the normal forms of queries that there are."""
    try:
        form = normal_form(query)
        rows = execute(database, query, limits)
        constant = is_constant(query) or not reads_data(database, query, limits)
    except NotParsed:
        return "not a query"
    except QueryFailed:
        return "does not run"
    if form in known:
        return "known"
    if constant:
        return "no column"
    return problem_of_result(rows)


def problem_of_result(rows: list[Row]) -> str:
    """Why a result is not worth a question; "" if it is."""
    if not tells_something(rows):
        return "empty result"
    if len(rows) > MAX_ROWS or len(rows[0]) > MAX_COLUMNS:
        return "large result"
    return ""
