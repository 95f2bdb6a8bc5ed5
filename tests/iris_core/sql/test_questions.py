"""Folders in the formats of Spider and BIRD as files of pairs."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from iris_core.common.errors import DataError
from iris_core.sql.execution import Limits
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Folder, link_databases, write_pairs

pytestmark = pytest.mark.unit

LONG = Budget(len, 10_000)


def database(folder: Path, db_id: str) -> None:
    (folder / db_id).mkdir(parents=True)
    with closing(sqlite3.connect(folder / db_id / f"{db_id}.sqlite")) as connection:
        connection.execute("CREATE TABLE t (a INTEGER)")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()


def questions(file: Path, *rows: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    folder = tmp_path / "spider"
    for db_id in ("one", "two", "three"):
        database(folder / "database", db_id)
    train = [
        {"db_id": "one", "question": "How many?", "query": "SELECT COUNT(*) FROM t;", "other": "x"},
        {"db_id": "one", "question": "How many?", "query": "SELECT COUNT(a) FROM t"},
        {"db_id": "one", "question": "Which?", "query": "SELECT b FROM t"},
        {"db_id": "lost", "question": "Which?", "query": "SELECT a FROM t"},
        {"db_id": "three", "question": "Which?", "query": "SELECT a FROM t"},
    ]
    questions(folder / "train_spider.json", *train)
    questions(folder / "train_others.json", {"db_id": "two", "question": "Which?", "query": "SELECT a FROM t"})
    questions(folder / "dev.json", {"db_id": "three", "question": "How many?", "query": "SELECT COUNT(*) FROM t"})
    return folder


def test_spider(spider: Path, tmp_path: Path) -> None:
    report = write_pairs(Folder(spider), tmp_path / "out", LONG)
    assert rows(tmp_path / "out" / "pairs.jsonl")[0] == {
        "prompt": "Database one:\nt(a integer: 1)\nAnswer with one SQLite query and nothing else.\nQuestion: How many?",
        "response": "SELECT COUNT(*) FROM t",
        "reference": '{"db_id": "one", "sql": "SELECT COUNT(*) FROM t"}',
        "db_id": "one",
        "question": "How many?",
    }
    assert [each["db_id"] for each in rows(tmp_path / "out" / "pairs.jsonl")] == ["one", "two"]
    assert [each["db_id"] for each in rows(tmp_path / "out" / "heldout.jsonl")] == ["three"]
    assert report.written == {"pairs.jsonl": 2, "heldout.jsonl": 1}
    assert report.left_out == {
        "pairs.jsonl: on a held-out database": 1,
        "pairs.jsonl: asked twice": 1,
        "pairs.jsonl: its query does not run, or is over a limit": 1,
        "pairs.jsonl: its database is missing": 1,
    }
    link = tmp_path / "out" / "databases" / "two" / "two.sqlite"
    assert link.read_bytes() == (spider / "database" / "two" / "two.sqlite").read_bytes()


def test_written_again_is_the_same(spider: Path, tmp_path: Path) -> None:
    write_pairs(Folder(spider), tmp_path / "out", LONG)
    first = (tmp_path / "out" / "pairs.jsonl").read_bytes()
    write_pairs(Folder(spider), tmp_path / "out", LONG)
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == first


def test_bird(tmp_path: Path) -> None:
    bird = tmp_path / "bird"
    database(bird / "train" / "train_databases", "one")
    database(bird / "dev" / "dev_databases", "two")
    hint = {"db_id": "one", "question": "How many?", "SQL": "SELECT COUNT(*) FROM t", "evidence": "many is a number"}
    questions(bird / "train" / "train.json", hint)
    questions(bird / "dev" / "dev.json", {**hint, "db_id": "two", "evidence": ""})
    write_pairs(Folder(bird), tmp_path / "out", LONG)
    (train,), (heldout,) = (rows(tmp_path / "out" / name) for name in ("pairs.jsonl", "heldout.jsonl"))
    assert train["prompt"].endswith("Question: How many?\nHint: many is a number")
    assert heldout["prompt"].endswith("Question: How many?")
    assert json.loads(heldout["reference"]) == {"db_id": "two", "sql": "SELECT COUNT(*) FROM t"}
    assert sorted(path.name for path in (tmp_path / "out" / "databases").iterdir()) == ["one", "two"]


def test_short_prompts_are_counted(spider: Path, tmp_path: Path) -> None:
    whole = "Database one:\nt(a integer: 1)\nAnswer with one SQLite query and nothing else.\nQuestion: How many?"
    report = write_pairs(Folder(spider), tmp_path / "out", Budget(len, len(whole)))
    assert report.shortened == {"no sample values": 1}  # "three" has a longer name
    assert report.left_out["pairs.jsonl: its prompt is too long"] == 0
    with pytest.raises(DataError, match=r"for pairs\.jsonl.*'pairs.jsonl: its prompt is too long': 2"):
        write_pairs(Folder(spider), tmp_path / "out", Budget(len, 10))


def test_databases_behind_links_are_found(spider: Path, tmp_path: Path) -> None:
    (spider / "database").rename(tmp_path / "elsewhere")
    (spider / "database").mkdir()
    for folder in (tmp_path / "elsewhere").iterdir():
        (spider / "database" / folder.name).symlink_to(folder)
    assert sorted(Folder(spider).databases) == ["one", "three", "two"]


def test_a_link_to_a_database_is_there_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database(tmp_path / "old", "shop")
    database(tmp_path / "new", "shop")
    old, new = (tmp_path / name / "shop" / "shop.sqlite" for name in ("old", "new"))
    link = tmp_path / "links" / "shop" / "shop.sqlite"
    link_databases({"shop": old}, tmp_path / "links")
    assert link.resolve() == old
    make, meanwhile = Path.symlink_to, []

    def made(path: Path, target: Path) -> None:
        make(path, target)
        meanwhile.append(link.resolve())

    monkeypatch.setattr(Path, "symlink_to", made)
    link_databases({"shop": new}, tmp_path / "links")
    assert (meanwhile, link.resolve()) == ([old], new)


def test_a_query_that_the_verifier_would_stop_is_left_out(spider: Path, tmp_path: Path) -> None:
    slow = "WITH RECURSIVE c(n) AS (SELECT a FROM t UNION ALL SELECT n + 1 FROM c) SELECT COUNT(*) FROM c"
    questions(spider / "train_others.json", {"db_id": "two", "question": "How slow?", "query": slow})
    report = write_pairs(Folder(spider), tmp_path / "out", LONG, Limits(seconds=0.2))
    assert report.left_out["pairs.jsonl: its query takes more time or memory than the verifier allows"] == 1


def test_a_damaged_database_is_named(spider: Path, tmp_path: Path) -> None:
    (spider / "database" / "two" / "two.sqlite").write_bytes(b"x" * 4096)
    with pytest.raises(DataError, match=r"two\.sqlite cannot be read as a SQLite database \(file is not a database\)"):
        write_pairs(Folder(spider), tmp_path / "out", LONG)


def test_what_is_in_the_way_stays(spider: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file cannot be written \(.+\): give another --out$"):
        write_pairs(Folder(spider), tmp_path / "file", LONG)
    (tmp_path / "out" / "pairs.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match=r"pairs\.jsonl is a folder, and a file is to be written there"):
        write_pairs(Folder(spider), tmp_path / "out", LONG)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has none of database, train_databases"):
        Folder(tmp_path)
    database(tmp_path / "database", "one")
    with pytest.raises(DataError, match=r"has no questions in train_spider\.json"):
        _ = Folder(tmp_path).train
    questions(tmp_path / "dev.json", {"db_id": "one", "question": "How many?"})
    with pytest.raises(
        DataError, match=r"dev\.json, row 1: SQL is None, not text: every row needs question, db_id and"
    ):
        _ = Folder(tmp_path).heldout
