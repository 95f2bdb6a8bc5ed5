"""Verdicts a second of the verifiers, in their limited processes, against the libraries that they use called directly.

The peer runs in one process without limits of time and memory, and judges the same responses in the same order: for
`math`, math-verify's `parse` and `verify`; for `sql`, both queries through `sqlite3` with their rows compared. IRIS has
as many processes as in the stage `generate`. Both have made their first verdicts before the first round.
"""

from __future__ import annotations

import json
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

from benchmarks.interleaved import Rounds, Run
from benchmarks.table import Line, Result
from iris_core.config import VerificationPart
from iris_core.verification.verdicts import Case

CASES = 2_000  # a round
WARM_UP = 100
Kind = Literal["math", "sql"]


def measure(repeats: int) -> Result:
    """Verdicts a second of both kinds."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [_compare(kind, Path(folder), repeats) for kind in ("math", "sql")]
    return Result("verification", lines, _TEXT)


def run_ours(rounds: Rounds, settings: VerificationPart, cases: list[Case], repeats: int) -> int:
    """Judges `cases` in each round as the stage `generate` does; returns how many are right."""
    from iris_core.verification.verifier import open_verifier

    with open_verifier(settings, None) as verifier:
        verifier.verify(cases[:WARM_UP])
        for _ in range(repeats):
            rounds.begin()
            started = time.perf_counter()
            verdicts = verifier.verify(cases)
            rounds.end(len(cases) / (time.perf_counter() - started))
    return sum(each.verdict == "right" for each in verdicts)


def run_peer(rounds: Rounds, settings: VerificationPart, cases: list[Case], repeats: int) -> int:
    """Judges `cases` in each round by the library alone; returns how many are right."""
    is_right = _by_math_verify() if settings.kind == "math" else _by_sqlite(Path(settings.databases or ""))
    for case in cases[:WARM_UP]:
        is_right(case)
    for _ in range(repeats):
        rounds.begin()
        started = time.perf_counter()
        right = sum(is_right(case) for case in cases)
        rounds.end(len(cases) / (time.perf_counter() - started))
    return right


def math_cases(count: int) -> list[Case]:
    """Different sums with their reasoning, as of GSM8K; every other answer is wrong."""
    rng, cases = random.Random(0), list[Case]()
    for number in range(count):
        a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
        value = a * b + c
        said = value + number % 2
        response = f"There are {a} boxes of {b} and {c} more: {a} * {b} + {c} = {said}.\n#### {said}"
        cases.append(Case(f"question {number}", response, f"#### {value}"))
    return cases


def sql_cases(folder: Path, count: int) -> list[Case]:
    """Questions about the generated databases in `folder`; the response is the query, or every other time another's."""
    questions = json.loads((folder / "train_spider.json").read_text(encoding="utf-8"))
    cases = []
    for number in range(count):
        asked, other = questions[number % len(questions)], questions[(number + 1) % len(questions)]
        query = asked["query"] if number % 2 == 0 else other["query"]
        reference = json.dumps({"db_id": asked["db_id"], "sql": asked["query"]})
        cases.append(Case(f"question {number}", query, reference))
    return cases


def _compare(kind: Kind, folder: Path, repeats: int) -> Line:
    from iris_core.demo.sql_databases import write_folder

    if kind == "sql":
        write_folder(folder, 0)
        settings, cases = VerificationPart(kind="sql", databases=str(folder / "database")), sql_cases(folder, CASES)
    else:
        settings, cases = VerificationPart(kind="math"), math_cases(CASES)
    arguments = {"settings": settings, "cases": cases, "repeats": repeats}
    with Run(run_ours, **arguments) as ours, Run(run_peer, **arguments) as peer:
        rates = [(ours.round(), peer.round()) for _ in range(repeats)]
        found = ours.result(), peer.result()
    assert found[0] == found[1], f"{kind}: {found} responses are right"
    title = f"verification, {kind}, against {'math-verify' if kind == 'math' else 'sqlite3'} called directly"
    return Line(title, "verdicts/s", [one for one, _ in rates], [other for _, other in rates])


def _by_math_verify() -> Callable[[Case], bool]:
    from math_verify import parse, verify

    def is_right(case: Case) -> bool:
        return bool(verify(parse(case.reference), parse(case.response)))

    return is_right


def _by_sqlite(databases: Path) -> Callable[[Case], bool]:
    def rows(db_id: str, query: str) -> Counter[tuple[object, ...]]:
        with closing(sqlite3.connect(databases / db_id / f"{db_id}.sqlite")) as connection:
            return Counter(connection.execute(query).fetchall())

    def is_right(case: Case) -> bool:
        reference = json.loads(case.reference or "")
        try:
            return rows(reference["db_id"], case.response) == rows(reference["db_id"], reference["sql"])
        except sqlite3.Error:
            return False

    return is_right


_TEXT = f"""{CASES:,} responses a round, about half of them right, the same by both. Ours is what the stage `generate`
does: a process for each processor, at most eight, with limits of time and memory. The peer is the library in one
process without them. With SQL ours does more: it parses both queries, allows reading only, and compares rows in any
order of columns.
"""
