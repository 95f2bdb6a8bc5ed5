r"""Answers to the held-out questions of Spider or BIRD as their own scripts read them.

    Spider   a line for each question: the query
    BIRD     {"0": "the query\t----- bird -----\tdb_id", …}

These scripts pair queries with references by their place, so each question of the released file has one, in its order.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from iris_core.common.errors import DataError
from iris_core.data.rows import read_rows
from iris_core.sql.questions import Folder, write_text
from iris_core.sql.statements import query_in

NOTHING = "SELECT NULL"  # for a question without an answer: it runs, and is wrong
BIRD = "\t----- bird -----\t"
# text and names between quotes, which stay; comments and spaces
PIECES = re.compile(r"""('[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\])|(?:--[^\n]*|/\*.*?(?:\*/|\Z)|\s)+""", re.DOTALL)


def write_predictions(source: Folder, pairs: Path, answers: Path, out: Path) -> tuple[int, int]:
    """Writes the queries in the answers to `out`: in BIRD's form if it ends in .json, else in Spider's.

    Args:
        source: the questions as released.
        pairs: the file of held-out pairs that `iris sql-pairs` made of them.
        answers: the Parquet file of `evaluate`, with the columns prompt and response.
        out: the file to write.

    Returns:
        How many questions there are, and how many of them have no answer.

    Raises:
        DataError: a file cannot be read or written, or nothing in it belongs to the questions.
    """
    given = dict(_columns(answers, "the heldout.parquet of a run", "prompt", "response"))
    known = _columns(pairs, "the heldout.jsonl of `iris sql-pairs`", "db_id", "question", "prompt")
    prompts = {(db_id, question): prompt for db_id, question, prompt in known}
    found = [given.get(prompts.get((each.db_id, each.question), "")) for each in source.heldout]
    missing = found.count(None)
    if missing == len(found):
        raise DataError(f"{answers}: no answer is to a prompt of {pairs}: give those of a run on these pairs")
    queries = [NOTHING if response is None else query_in(response) or NOTHING for response in found]
    if out.suffix == ".json":
        each = zip(queries, source.heldout, strict=True)
        text = json.dumps({str(n): f"{query}{BIRD}{asked.db_id}" for n, (query, asked) in enumerate(each)}, indent=2)
    else:
        text = "".join(f"{one_line(query) or NOTHING}\n" for query in queries)
    write_text(out, text)
    return len(found), missing


def one_line(query: str) -> str:
    """The query without comments, on one line, and without tabs, at which Spider's script cuts it."""
    return re.sub(r"[\r\n\t]", " ", PIECES.sub(lambda piece: piece[1] or " ", query)).strip()


def _columns(file: Path, what: str, *names: str) -> list[tuple[Any, ...]]:
    """The values of some columns of a file, row by row; `what` says what the file should be."""
    try:
        return [tuple(row[name] for name in names) for row in read_rows(file)]
    except KeyError as error:
        raise DataError(f"{file} has no column {error}: give {what}") from None
