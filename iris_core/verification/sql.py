"""Verifier `sql`: the query in the response has the result of the reference's query on its database.

A reference is JSON: `{"db_id": "pets", "sql": "SELECT COUNT(*) FROM pet"}`. What counts as the same result is in
`iris_core.sql.results`, and what a query may do in `iris_core.sql.execution`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from iris_core.common.errors import ConfigError
from iris_core.config import VerificationPart
from iris_core.sql.execution import Limits, QueryFailed, QueryStopped, Row, database_file, execute, reads_data
from iris_core.sql.results import same_result, stands_in, tells_something
from iris_core.sql.schema import check_complete
from iris_core.sql.statements import is_constant, is_ordered, is_written, query_in, same_parts, values_in
from iris_core.verification.verdicts import Case, Judge, Verdict

SAME_PARTS, SAME_RESULT = "same parts", "same result"  # why a response is right
CONSTANT = "it reads nothing of the database"  # why one with the same result is wrong
NOTHING_FOUND = "another query, and both find nothing"  # why one with the same result is undecided
WRITTEN = "its result is written in it"  # so is this: the model may have taken it from the prompt
TIME_SHARE = 0.4  # of the time for a verdict that one of the two queries may take
MEMORY_SHARE = 0.25  # of the process's memory that SQLite may take
KEPT = 4  # results of references: the responses to one prompt follow each other


class Expected(NamedTuple):
    """The reference: its database, its query, the result, and whether the order of its rows counts."""

    database: Path
    query: str
    rows: list[Row]
    ordered: bool


def check(settings: VerificationPart) -> None:
    """Looks for databases.

    Raises:
        ConfigError: the folder holds none.
        DataError: one of them is not complete.
    """
    folder = _folder(settings)
    databases = sorted(folder.glob("*/*.sqlite"))
    for database in databases:
        check_complete(database)
    if not databases:
        raise ConfigError(
            f"verification.databases: {folder} holds no <db_id>/<db_id>.sqlite: give the folder with the databases"
        )


def limits_of(settings: VerificationPart) -> Limits:
    """What one of the two queries of a verdict may take."""
    return Limits(
        seconds=TIME_SHARE * settings.timeout, memory_bytes=int(MEMORY_SHARE * settings.memory_gb * 1_000_000_000)
    )


def open_judge(settings: VerificationPart) -> Judge:
    """Executes queries on the databases of `settings`."""
    folder, limits = _folder(settings), limits_of(settings)

    @lru_cache(maxsize=KEPT)
    def expected(reference: str) -> Expected:
        return read_reference(folder, reference, limits)

    def judge(case: Case) -> Verdict:
        assert case.reference is not None
        try:
            wanted = expected(case.reference)
        except QueryStopped as error:
            return Verdict("undecided", f"{error} (the reference)")
        except (QueryFailed, ValueError, KeyError, TypeError, RecursionError) as error:
            return Verdict("undecided", f"the reference: {error}")
        return compare(case.response, wanted, limits)

    return judge


def read_reference(folder: Path, reference: str, limits: Limits) -> Expected:
    """Executes the query of a reference.

    Raises:
        QueryFailed: it has no result.
        ValueError, KeyError, TypeError, RecursionError: the reference is not what it must be.
    """
    found = json.loads(reference)
    database, query = database_file(folder, found["db_id"]), found["sql"]
    return Expected(database, query, execute(database, query, limits), is_ordered(query))


def compare(response: str, wanted: Expected, limits: Limits) -> Verdict:
    """Right if the query in `response` has the wanted result, and that is not one of many other queries, too.

    Undecided if it is stopped before it has one.
    """
    query = query_in(response)
    try:
        rows = execute(wanted.database, query, limits)
        if not same_result(rows, wanted.rows, ordered=wanted.ordered):
            return Verdict("wrong", f"another result: {len(rows)} rows, the reference has {len(wanted.rows)}")
        if same_parts(query, wanted.query):
            return Verdict("right", SAME_PARTS)
        if is_constant(query) or not reads_data(wanted.database, query, limits):
            return Verdict("wrong", CONSTANT)
    except QueryStopped as error:
        return Verdict("undecided", str(error))
    except QueryFailed as error:
        return Verdict("wrong", str(error))
    if not tells_something(wanted.rows):
        return Verdict("undecided", NOTHING_FOUND)
    may_be_guessed = (is_written, lambda each: stands_in(wanted.rows, values_in(each)))
    if any(guessed(query) and not guessed(wanted.query) for guessed in may_be_guessed):
        return Verdict("undecided", WRITTEN)
    return Verdict("right", SAME_RESULT)


def _folder(settings: VerificationPart) -> Path:
    assert settings.databases is not None
    return Path(settings.databases).expanduser()
