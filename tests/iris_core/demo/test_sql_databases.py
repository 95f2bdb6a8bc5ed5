"""The generated databases: reproducible, without leakage, and every query tells something on its database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iris_core.common.digest import folder_digest
from iris_core.demo.sql_databases import main, write_folder
from iris_core.demo.sql_phrases import DATABASES, HELD_OUT, WITHOUT_QUESTIONS
from iris_core.sql.execution import Limits, execute
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Folder, write_pairs
from iris_core.sql.statements import normal_form

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("databases")
    write_folder(found, seed=3)
    return found


def questions(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text())


def test_held_out_databases_are_not_trained_on(folder: Path) -> None:
    train = {each["db_id"] for each in questions(folder, "train_spider")}
    heldout = {each["db_id"] for each in questions(folder, "dev")}
    assert heldout == set(HELD_OUT)
    assert train == set(DATABASES) - set(HELD_OUT) - set(WITHOUT_QUESTIONS)
    assert (len(train), len(heldout)) == (8, 4)
    names = {db_id: {table.name for table in tables} for db_id, tables in DATABASES.items()}
    assert all(not names[one] & names[other] for one in HELD_OUT for other in train)


@pytest.mark.parametrize("name", ["train_spider", "dev"])
def test_every_query_tells_something_and_none_is_there_twice(folder: Path, name: str) -> None:
    found = questions(folder, name)
    for each in found:
        rows = execute(folder / "database" / each["db_id"] / f"{each['db_id']}.sqlite", each["query"], Limits())
        assert any(value not in (None, 0) for row in rows for value in row), each
    assert len({(each["db_id"], each["question"]) for each in found}) == len(found)
    assert len({(each["db_id"], normal_form(each["query"])) for each in found}) == len(found)


def test_the_seed_decides_everything(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path, seed=3)
    assert folder_digest(tmp_path) == folder_digest(folder, ("*.json", "database/**/*"))
    write_folder(tmp_path, seed=4)
    assert questions(tmp_path, "dev") != questions(folder, "dev")


def test_all_questions_become_pairs(folder: Path, tmp_path: Path) -> None:
    report = write_pairs(Folder(folder), tmp_path, Budget(len, 10_000))
    assert report.written == {"pairs.jsonl": 384, "heldout.jsonl": 192}
    assert not report.left_out.total()
    assert not report.shortened


def test_too_many_questions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "--questions", "5000"])
    assert "different questions, not 5000: ask for fewer" in capsys.readouterr().err
