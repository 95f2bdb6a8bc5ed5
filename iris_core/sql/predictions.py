r"""Answers to the held-out questions of Spider or BIRD as their own scripts read them.

    Spider   a line for each question: the query
    BIRD     {"0": "the query\t----- bird -----\tdb_id", …}

These scripts pair queries with references by their place, so each question of the released file has one, in its order.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.common.errors import DataError, first_line
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
    given = _answers(answers)
    prompts = {(row["db_id"], row["question"]): row["prompt"] for row in _rows(pairs)}
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


def _answers(file: Path) -> dict[str, str]:
    """The response to each prompt."""
    try:
        table = pq.read_table(file, columns=["prompt", "response"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not the answers of a run ({first_line(error)}): give its heldout.parquet") from None
    return dict(zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True))


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        return [{name: row[name] for name in ("db_id", "question", "prompt")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not held-out pairs of `iris sql-pairs` ({first_line(error)}): give them") from None
