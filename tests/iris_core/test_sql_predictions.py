"""Queries for the scripts of Spider and BIRD."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iris_core.common.errors import DataError
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Folder, write_pairs
from iris_core.sql_predictions import one_line, write_predictions

pytestmark = pytest.mark.unit

ASKED = [("How many?", "SELECT COUNT(*) FROM t"), ("Which?", "SELECT b FROM t"), ("Who?", "SELECT a FROM t")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The query of the second question does not run."""
    for db_id in ("one", "two"):
        file = tmp_path / "database" / db_id / f"{db_id}.sqlite"
        file.parent.mkdir(parents=True)
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript("CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1)")
    for name, db_id in (("train_spider.json", "one"), ("dev.json", "two")):
        rows = [{"db_id": db_id, "question": question, "query": query} for question, query in ASKED]
        (tmp_path / name).write_text(json.dumps(rows))
    write_pairs(Folder(tmp_path), tmp_path, Budget(len, 10_000))
    return tmp_path


def answers(folder: Path, *responses: str) -> Path:
    prompts = [json.loads(line)["prompt"] for line in (folder / "heldout.jsonl").read_text().split("\n") if line]
    pq.write_table(pa.table({"prompt": prompts[::-1], "response": list(responses)[::-1]}), folder / "heldout.parquet")
    return folder / "heldout.parquet"


def test_each_question_has_a_query_in_its_place(folder: Path) -> None:
    found = answers(folder, "Here:\n```sql\nSELECT 1 -- one\nFROM t;\n```", "SELECT a FROM t")
    out = folder / "predict.txt"
    assert write_predictions(Folder(folder), folder / "heldout.jsonl", found, out) == (3, 1)
    assert out.read_text() == "SELECT 1 FROM t\nSELECT NULL\nSELECT a FROM t\n"
    write_predictions(Folder(folder), folder / "heldout.jsonl", found, folder / "predict.json")
    assert json.loads((folder / "predict.json").read_text()) == {
        "0": "SELECT 1 -- one\nFROM t\t----- bird -----\ttwo",
        "1": "SELECT NULL\t----- bird -----\ttwo",
        "2": "SELECT a FROM t\t----- bird -----\ttwo",
    }


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("-- I cannot answer this", ""),
        ("SELECT 'x\r\ny\tz'", "SELECT 'x  y z'"),
        ("SELECT a\r\n  FROM t\n", "SELECT a FROM t"),
        ("SELECT '--x', \"/*\" /* c\n */ FROM t -- '", "SELECT '--x', \"/*\" FROM t"),
    ],
)
def test_a_query_on_one_line(query: str, line: str) -> None:
    assert one_line(query) == line


def test_an_answer_without_a_query_keeps_its_line(folder: Path) -> None:
    """Spider's script takes an empty line for the end of a conversation."""
    found = answers(folder, "-- I cannot answer this", "SELECT a FROM t")
    write_predictions(Folder(folder), folder / "heldout.jsonl", found, folder / "new" / "predict.txt")
    assert (folder / "new" / "predict.txt").read_text() == "SELECT NULL\nSELECT NULL\nSELECT a FROM t\n"


def test_ends_of_lines_that_json_does_not_escape(folder: Path) -> None:
    for name in ("dev.json", "heldout.jsonl"):
        (folder / name).write_text((folder / name).read_text().replace("Who?", "Who\u2028is it?"))
    found = answers(folder, "SELECT 1", "SELECT a FROM t")
    assert write_predictions(Folder(folder), folder / "heldout.jsonl", found, folder / "out.txt") == (3, 1)


def test_a_folder_in_the_way_stays(folder: Path) -> None:
    found = answers(folder, "x", "y")
    with pytest.raises(DataError, match=r"database is a folder, and a file is to be written there"):
        write_predictions(Folder(folder), folder / "heldout.jsonl", found, folder / "database")
    assert (folder / "database" / "one").is_dir()


def test_files_of_something_else_are_named(folder: Path) -> None:
    found, pairs = answers(folder, "x", "y"), folder / "heldout.jsonl"
    with pytest.raises(DataError, match=r"dev\.json has no column 'prompt': give the heldout\.parquet of a run"):
        write_predictions(Folder(folder), pairs, folder / "dev.json", folder / "out")
    with pytest.raises(DataError, match=r"heldout\.parquet has no column 'db_id': give the heldout\.jsonl of"):
        write_predictions(Folder(folder), found, found, folder / "out")
    with pytest.raises(DataError, match=r"no answer is to a prompt of \S+pairs\.jsonl"):
        write_predictions(Folder(folder), folder / "pairs.jsonl", found, folder / "out")
    assert not (folder / "out").exists()
