"""Folders laid out as Spider and BIRD are released, with the odd bytes, names and values that they have."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from iris_core.common.errors import DataError
from iris_core.config import VerificationPart
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Folder, write_pairs
from iris_core.verification.sql import open_judge
from iris_core.verification.verdicts import Case

pytestmark = pytest.mark.unit

LONG = Budget(len, 10_000)
SCHOOLS = """
CREATE TABLE frpm (CDSCode TEXT NOT NULL primary key, `Charter School (Y/N)` INTEGER null,
    "Percent (%) Eligible Free (K-12)" REAL null, `District, "Name"` TEXT, foreign key (CDSCode) references schools);
CREATE TABLE schools (CDSCode TEXT primary key, `order` INTEGER, notes TEXT);
INSERT INTO schools VALUES ('01', 1, CAST(x'4d756e6368e46e' AS TEXT)), ('02', 2, 'a' || char(0) || 'b'),
    ('03', 3, 'two' || char(10) || 'lines'), ('04', 4, 'Fresno'), ('05', NULL, x'ff');
INSERT INTO frpm VALUES ('01', 1, 0.5, 'It''s'), ('02', 0, NULL, NULL), ('03', 1, 0.25, ''), ('04', NULL, 1e300, 'x');
CREATE TABLE "order" (order_id INTEGER primary key, account_id INTEGER);
INSERT INTO "order" VALUES (29401, 1), (29402, 2);
"""
PROMPT = """Database schools:
frpm(CDSCode text key -> schools, "Charter School (Y/N)" integer: 1 0, "Percent (%) Eligible Free (K-12)" real: \
0.5 0.25 1e+300, "District, ""Name""\" text: 'It''s' '' 'x')
schools(CDSCode text key, "order" integer: 1 2 3, notes text: 'Fresno')
"order"(order_id integer key, account_id integer: 1 2)
Answer with one SQLite query and nothing else.
Question: What is the rate – in Alameda?
Hint: rate = `Percent (%) Eligible Free (K-12)`"""
BIRD = [
    (
        "What is the rate – in Alameda?",
        "SELECT `Percent (%) Eligible Free (K-12)` FROM frpm WHERE `Charter School (Y/N)` = 1 AND CDSCode = '01'",
        "rate = `Percent (%) Eligible Free (K-12)`",
    ),
    ("Which notes are there?", "SELECT notes FROM schools ORDER BY `order` DESC", "False"),
    ("Which orders are there?", "SELECT T1.order_id FROM `order` AS T1\nWHERE T1.account_id = 1;", ""),
]


def database(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(script)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def bird_rows(db_id: str) -> str:
    found = [
        {"question_id": n, "db_id": db_id, "question": asked, "evidence": hint, "SQL": sql, "difficulty": "simple"}
        for n, (asked, sql, hint) in enumerate(BIRD)
    ]
    return json.dumps(found, indent=4, ensure_ascii=False)


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    """As `spider_data.zip` unpacks: more fields and files than are read, two databases of which one has no rows."""
    folder = tmp_path / "spider_data"
    table = "CREATE TABLE country (Name TEXT, Language TEXT, Population INT);"
    database(
        folder / "database/world_1/world_1.sqlite", f"{table} INSERT INTO country VALUES ('Chile', 'Spanish', 19);"
    )
    database(folder / "database/imdb/imdb.sqlite", table)
    database(folder / "test_database/unseen/unseen.sqlite", table)
    (folder / "database/imdb/schema.sql").write_text(table)
    (folder / "database/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "__MACOSX/database/imdb").mkdir(parents=True)
    (folder / "__MACOSX/database/imdb/._imdb.sqlite").write_bytes(b"\0\5\x16\7")
    query = 'SELECT avg(Population) FROM country WHERE Language  =  "Spanish"'
    row = {"db_id": "world_1", "query": query, "query_toks": query.split(), "question": "How many?", "sql": {}}
    (folder / "dev.json").write_text(json.dumps([row]))
    (folder / "train_spider.json").write_text(json.dumps([{**row, "db_id": "imdb"}]))
    (folder / "train_others.json").write_text("[]")
    (folder / "test.json").write_text(json.dumps([{**row, "db_id": "unseen"}]))
    (folder / "tables.json").write_text("[]")
    (folder / "dev_gold.sql").write_text(f"{query}\tworld_1\n")
    return folder


@pytest.fixture
def bird(tmp_path: Path) -> Path:
    """As BIRD's archives unpack: `dev_databases` in a folder of its own name, `dev.json` with a byte order mark."""
    folder = tmp_path / "bird"
    database(folder / "train/train_databases/lakes/lakes.sqlite", SCHOOLS)
    database(folder / "dev/dev_databases/dev_databases/schools/schools.sqlite", SCHOOLS)
    described = folder / "dev/dev_databases/dev_databases/schools/database_description"
    described.mkdir()
    header = "original_column_name,column_name,column_description,data_format,value_description\r\n"
    (described / "frpm.csv").write_bytes(b"\xef\xbb\xbf" + header.encode() + b'CDSCode,,"a,\nb",text,\xe4\x96\0')
    (folder / "train/train.json").write_text(bird_rows("lakes"), encoding="utf-8")
    (folder / "train/train_gold.sql").write_text("SELECT 1\tlakes\n")
    (folder / "dev/dev.json").write_text(bird_rows("schools"), encoding="utf-8-sig")
    return folder


def test_a_mini_dev_behind_a_link(bird: Path, tmp_path: Path) -> None:
    (bird / "dev").rename(tmp_path / "MINIDEV")
    (tmp_path / "MINIDEV/dev.json").rename(tmp_path / "MINIDEV/mini_dev_sqlite.json")
    (bird / "MINIDEV").symlink_to(tmp_path / "MINIDEV")
    assert len(Folder(bird).heldout) == 3
    assert sorted(Folder(bird).databases) == ["lakes", "schools"]


@pytest.mark.parametrize("place", ["dev_20240627/dev.json", "minidev/MINIDEV/mini_dev_sqlite.json"])
def test_bird_as_its_archives_name_it(bird: Path, place: str, tmp_path: Path) -> None:
    file = bird / place
    file.parent.parent.mkdir(exist_ok=True)
    (bird / "dev").rename(file.parent)
    (file.parent / "dev.json").rename(file)
    report = write_pairs(Folder(bird), tmp_path / "out", LONG)
    assert report.written == {"pairs.jsonl": 3, "heldout.jsonl": 3}


def test_databases_are_those_beside_the_questions(bird: Path) -> None:
    """BIRD's dev set and Mini-Dev have different copies of some databases."""
    other = bird / "minidev/MINIDEV"
    database(other / "dev_databases/schools/schools.sqlite", "CREATE TABLE other (a TEXT)")
    (other / "mini_dev_sqlite.json").write_text("[]")
    found = Folder(bird)
    assert len(found.heldout) == 3
    assert found.databases["schools"] == bird / "dev/dev_databases/dev_databases/schools/schools.sqlite"


def test_questions_in_json_lines(bird: Path) -> None:
    """As BIRD's filtered training set is."""
    before = Folder(bird).train
    found = json.loads(bird_rows("lakes"))
    for count in (len(found), 1):
        (bird / "train/train.json").write_text("".join(json.dumps(each) + "\n" for each in found[:count]))
        assert Folder(bird).train == before[:count]


def test_spider_as_released(spider: Path, tmp_path: Path) -> None:
    report = write_pairs(Folder(spider), tmp_path / "out", LONG)
    assert report.written == {"pairs.jsonl": 1, "heldout.jsonl": 1}
    assert report.left_out.total() == 0
    assert report.unproven == {"pairs.jsonl": 1}  # a database without rows
    assert sorted(path.name for path in (tmp_path / "out" / "databases").iterdir()) == ["imdb", "world_1"]


def test_bird_as_released(bird: Path, tmp_path: Path) -> None:
    report = write_pairs(Folder(bird), tmp_path / "out", LONG)
    assert report.written == {"pairs.jsonl": 3, "heldout.jsonl": 3}
    assert report.left_out.total() == 0
    heldout = rows(tmp_path / "out" / "heldout.jsonl")
    assert heldout[0]["prompt"] == PROMPT
    assert heldout[1]["prompt"].endswith("\nQuestion: Which notes are there?")  # a hint "False" is none
    assert [each["response"] for each in heldout[:2]] == [sql for _, sql, _ in BIRD[:2]]
    settings = VerificationPart(kind="sql", databases=str(tmp_path / "out" / "databases"))
    judge = open_judge(settings)
    for each in [*rows(tmp_path / "out" / "pairs.jsonl"), *heldout]:
        assert judge(Case(each["prompt"], each["response"], each["reference"])).verdict == "right"
        assert judge(Case(each["prompt"], "SELECT notes FROM schools", each["reference"])).verdict == "wrong"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"db_id": 3}, r"dev\.json, row 2: db_id is 3, not text"),
        ({"question": None}, r"dev\.json, row 2: question is None, not text"),
        ({"SQL": ["SELECT 1"]}, r"dev\.json, row 2: SQL is \['SELECT 1'\], not text"),
        ({"evidence": 7}, r"dev\.json, row 2: evidence is 7, not text"),
        ({"question": "How \ud83d many?"}, r"dev\.json, row 2: question has half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named(bird: Path, change: dict[str, Any], message: str) -> None:
    found = json.loads(bird_rows("schools"))
    found[1].update(change)
    (bird / "dev/dev.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=message):
        _ = Folder(bird).heldout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": []}', r"dev\.json is dict, not a list of questions"),
        (b'["x"]', r"dev\.json, row 1 is str, not an object with question, db_id and query or SQL"),
        (b'[{"db_id"', r"dev\.json is not JSON in UTF-8 \(Expecting"),
        (b'[{"question": "caf\xe9"}]', r"dev\.json is not JSON in UTF-8 \('utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_a_bad_file_is_named(bird: Path, content: bytes, message: str) -> None:
    (bird / "dev/dev.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        _ = Folder(bird).heldout


def test_a_result_that_the_verifier_would_not_take_is_left_out(spider: Path, tmp_path: Path) -> None:
    numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT {}) SELECT n FROM c"
    train = [
        {"db_id": "imdb", "question": f"Count to {most}.", "query": numbers.format(most)} for most in (100_000, 100_001)
    ]
    (spider / "train_spider.json").write_text(json.dumps(train))
    report = write_pairs(Folder(spider), tmp_path / "out", LONG)
    assert [each["question"] for each in rows(tmp_path / "out" / "pairs.jsonl")] == ["Count to 100000."]
    assert report.left_out["pairs.jsonl: its query does not run, or is over a limit"] == 1
