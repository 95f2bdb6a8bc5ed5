"""The verifier `sql`: by the results of queries, with hostile queries in a verifier's real process."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iris_core.common.digest import file_digest
from iris_core.common.errors import ConfigError, DataError
from iris_core.config import VerificationPart
from iris_core.pipeline.verifier import verifier_versions
from iris_core.verification.sql import check, open_judge
from iris_core.verification.verdicts import Case
from iris_core.verification.verifier import open_verifier

pytestmark = pytest.mark.unit

PETS = "SELECT name FROM pet WHERE age > 2"


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("databases")
    (folder / "pets").mkdir()
    with closing(sqlite3.connect(folder / "pets" / "pets.sqlite")) as connection:
        connection.execute("CREATE TABLE pet (name TEXT, age INTEGER)")
        connection.executemany("INSERT INTO pet VALUES (?, ?)", [("Rex", 3), ("Tom", 5), ("Ida", 1)])
        connection.commit()
    return folder


def settings(databases: Path, **given: object) -> VerificationPart:
    return VerificationPart.model_validate({"kind": "sql", "databases": str(databases), **given})


def case(response: str, sql: str = PETS, db_id: str = "pets") -> Case:
    return Case("?", response, json.dumps({"db_id": db_id, "sql": sql}))


@pytest.mark.parametrize(
    ("response", "verdict", "reason"),
    [
        (PETS, "right", "same parts"),
        ("```sql\nSELECT T1.name FROM pet AS T1 WHERE T1.age > 2;\n```", "right", "same parts"),
        ("SELECT name FROM pet WHERE NOT age <= 2 ORDER BY age DESC", "right", "same result"),
        ("SELECT name FROM pet", "wrong", "another result: 3 rows, the reference has 2"),
        ("SELECT nam FROM pet", "wrong", "no such column: nam"),
        ("There are two.", "wrong", 'near "There": syntax error'),
        ("", "wrong", "it is not a query"),
        ("DROP TABLE pet", "wrong", "not authorized"),
        (f"{PETS}; DROP TABLE pet", "wrong", "You can only execute one statement at a time."),
    ],
)
def test_verdicts(databases: Path, response: str, verdict: str, reason: str) -> None:
    before = file_digest(databases / "pets" / "pets.sqlite")
    found = open_judge(settings(databases))(case(response))
    assert (found.verdict, found.reason) == (verdict, reason)
    assert file_digest(databases / "pets" / "pets.sqlite") == before


def test_the_order_counts_where_the_reference_asks_for_one(databases: Path) -> None:
    judge, up = open_judge(settings(databases)), "SELECT name FROM pet ORDER BY age"
    assert judge(case("SELECT name FROM pet ORDER BY age ASC", up)).verdict == "right"
    assert judge(case("SELECT name FROM pet ORDER BY age DESC", up)).verdict == "wrong"
    assert judge(case("SELECT name FROM pet ORDER BY age DESC", "SELECT name FROM pet")).verdict == "right"


@pytest.mark.parametrize(
    ("sql", "response", "verdict"),
    [
        ("SELECT name FROM pet WHERE age > 9", "SELECT name FROM pet WHERE age > 9", "right"),
        ("SELECT name FROM pet WHERE age > 9", "SELECT T1.name FROM pet AS T1 WHERE T1.age > 9", "right"),
        ("SELECT name FROM pet WHERE age > 9", "SELECT age FROM pet WHERE name = 'Max'", "undecided"),
        ("SELECT COUNT(*) FROM pet WHERE age > 9", "SELECT COUNT(*) FROM pet WHERE name = 'Max'", "undecided"),
        ("SELECT COUNT(*) FROM pet WHERE age > 9", "SELECT 1", "wrong"),
        ("SELECT COUNT(*) FROM pet WHERE age > 2", "SELECT SUM(age > 2) FROM pet", "right"),
        ("SELECT COUNT(*) FROM pet WHERE age > 2", "SELECT 2", "wrong"),  # a guess, which says nothing elsewhere
        ("SELECT name FROM pet WHERE age = 5", "SELECT 'Tom' FROM pet LIMIT 1", "wrong"),
        ("SELECT name FROM pet WHERE age = 5", "VALUES ('Tom')", "wrong"),
        ("SELECT name FROM pet WHERE age = 5", "WITH pet(name) AS (SELECT 'Tom') SELECT name FROM pet", "wrong"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT value AS name FROM json_each('[\"Tom\"]')", "wrong"),
        ("SELECT COUNT(*) FROM pet", "WITH x(n) AS (VALUES (1), (2), (3)) SELECT COUNT(*) FROM x", "wrong"),
        ("SELECT COUNT(*) FROM pet", "SELECT SUM(1) FROM pet", "right"),
        ("SELECT COUNT(*) FROM pet", " ; SELECT SUM(1) FROM pet", "right"),
        ("SELECT COUNT(*) > 0 FROM pet", "SELECT EXISTS (SELECT 1 FROM pet)", "right"),
        ("SELECT COUNT(*) FROM pet", "/**/; -- x\n SELECT SUM(1) FROM pet", "right"),
        ("SELECT name FROM pet WHERE age = 5", " ; WITH pet(name) AS (SELECT 'Tom') SELECT name FROM pet", "wrong"),
        ("SELECT name FROM pet WHERE age = 5", "/**/;WITH pet(name) AS (SELECT 'Tom') SELECT name FROM pet", "wrong"),
        ("SELECT COUNT(*) FROM pet", "/* a\nb */;\nSELECT SUM(1) FROM pet", "right"),
        ("SELECT name FROM pet WHERE age = 5", "/* a\nb */;WITH p(n) AS (SELECT 'Tom') SELECT n FROM p", "wrong"),
        ("SELECT name FROM pet WHERE age = 5", "-- x\n;WITH p(n) AS (SELECT 'Tom') SELECT n FROM p", "wrong"),
        ("SELECT COUNT(*) FROM pet WHERE age = 5", "SELECT COUNT(*) FROM sqlite_master", "wrong"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT 'Tom' FROM pet WHERE age LIKE '%' LIMIT 1", "undecided"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT DISTINCT 'Tom' FROM pet WHERE age > 0", "undecided"),
        (
            "SELECT name FROM pet",
            "SELECT 'Rex' FROM pet WHERE age = 3 UNION SELECT 'Tom' UNION SELECT 'Ida'",
            "undecided",
        ),
        ("SELECT name FROM pet WHERE age = 5", "SELECT MAX('Tom') FROM pet", "undecided"),
        ("SELECT name FROM pet WHERE age = 5", 'SELECT MAX("Tom") FROM pet', "undecided"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT n FROM (SELECT 'Tom' AS n, age FROM pet LIMIT 1)", "undecided"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT IIF(COUNT(*) > 0, 'Tom', 'x') FROM pet", "undecided"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT 'Tom' UNION SELECT name FROM pet WHERE 0", "undecided"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT name FROM pet WHERE name = 'Tom'", "undecided"),
        ("SELECT name FROM pet WHERE name = 'Tom'", "SELECT name FROM pet WHERE name LIKE 'Tom'", "right"),
        ("SELECT age FROM pet WHERE name = 'Tom'", "SELECT -age FROM pet WHERE age = 5", "wrong"),
        ("SELECT -age FROM pet WHERE name = 'Tom'", "SELECT -MAX(5) FROM pet", "undecided"),
        ("SELECT age FROM pet WHERE name = 'Tom'", "SELECT age FROM pet WHERE age = '5.0'", "undecided"),
        ("SELECT age FROM pet WHERE name = 'Ida'", "SELECT age FROM pet ORDER BY 1 LIMIT 1", "right"),
        ("SELECT COUNT(*) FROM pet WHERE age = 5", "SELECT COUNT(1) FROM pet WHERE age = 5", "right"),
        ("SELECT COUNT(*) FROM pet WHERE age = 5", "SELECT SUM(CASE WHEN age = 5 THEN 1 ELSE 0 END) FROM pet", "right"),
        ("SELECT COUNT(*) FROM pet WHERE age > 1", "SELECT COUNT(*) FROM (SELECT 1 FROM pet LIMIT 2)", "undecided"),
        ("SELECT age FROM pet WHERE name = 'Tom'", "SELECT MAX(5) FROM pet /* x", "undecided"),
        ("SELECT name, age - 4 FROM pet WHERE age = 5", "SELECT MAX('Tom'), MAX(1) FROM pet", "undecided"),
        ("SELECT name FROM pet WHERE age = 5", "SELECT name FROM pet WHERE name LIKE 'tom'", "undecided"),
        ("SELECT age FROM pet WHERE name = 'Tom'", "VALUES((SELECT MAX(5) FROM pet))", "undecided"),
        ("SELECT age FROM pet WHERE name = 'Tom'", "SELECT MAX(age) FROM pet -- not 5", "right"),
        ("SELECT name, age FROM pet WHERE age = 5", "SELECT name, age FROM pet WHERE name = 'Tom'", "right"),
        ("SELECT CASE WHEN COUNT(*) > 2 THEN 'YES' END FROM pet", "SELECT 'YES' FROM pet LIMIT 1", "wrong"),
        ("SELECT CASE WHEN COUNT(*) > 2 THEN 'YES' END FROM pet", "SELECT 'YES' FROM pet WHERE age = 5", "undecided"),
        (
            "SELECT CASE WHEN COUNT(*) > 2 THEN 'YES' END FROM pet",
            "SELECT IIF(SUM(1) > 2, 'YES', 'NO') FROM pet",
            "right",
        ),
        ("SELECT 'yes' FROM pet WHERE age = 5", "SELECT 'yes' FROM pet WHERE name = 'Tom'", "right"),
        ("SELECT name FROM pet WHERE age > 9", "SELECT age FROM pet WHERE age > 9", "undecided"),
        ("SELECT age FROM pet WHERE name = 'Tom'", "SELECT atom FROM pet, json_tree(age) WHERE name = 'Tom'", "right"),
        ("SELECT age FROM pet WHERE name = 'Tom'", "SELECT value FROM pet, json_each(age) WHERE name = 'Tom'", "right"),
    ],
)
def test_a_result_that_many_queries_have_does_not_make_one_right(
    databases: Path, sql: str, response: str, verdict: str
) -> None:
    assert open_judge(settings(databases))(case(response, sql)).verdict == verdict


@pytest.mark.parametrize(
    ("response", "verdict", "reason"),
    [
        ("SELECT 'Tom' FROM pet LIMIT 1", "wrong", "it reads nothing of the database"),
        ("SELECT MAX('Tom') FROM pet", "undecided", "its result is written in it"),
        ("SELECT 'Tom' FROM pet GROUP BY 1 HAVING COUNT(*) > 2", "undecided", "its result is written in it"),
    ],
)
def test_what_could_be_taken_from_the_prompt_is_not_right(
    databases: Path, response: str, verdict: str, reason: str
) -> None:
    found = open_judge(settings(databases))(case(response, "SELECT name FROM pet WHERE age = 5"))
    assert (found.verdict, found.reason) == (verdict, reason)


@pytest.mark.parametrize(
    ("sql", "db_id", "reason"),
    [
        ("SELECT nam FROM pet", "pets", "the reference: no such column: nam"),
        (PETS, "../pets", "the reference: there is no database '../pets'"),
        ("DELETE FROM pet", "pets", "the reference: not authorized"),
    ],
)
def test_a_reference_without_result_decides_nothing(databases: Path, sql: str, db_id: str, reason: str) -> None:
    found = open_judge(settings(databases))(case(PETS, sql, db_id))
    assert found.verdict == "undecided"
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    "reference", ["", "[]", "[" * 100_000, "{}", '{"db_id": "pets"}', '{"db_id": 3, "sql": "x"}', PETS]
)
def test_what_is_no_reference_decides_nothing(databases: Path, reference: str) -> None:
    assert open_judge(settings(databases))(Case("?", PETS, reference)).verdict == "undecided"


def test_a_query_that_is_stopped_decides_nothing(databases: Path) -> None:
    """For its time, of which it has a part, or memory: on another machine it might be right.

    Other limits depend on the query alone.
    """
    many = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c {}) SELECT {} FROM c"
    endless, long = many.format("", "COUNT(*)"), many.format("LIMIT 200000", "n")
    judge = open_judge(settings(databases, timeout=0.5))
    for stopped, whose in ((case(endless), ""), (case(PETS, endless), " (the reference)")):
        found = judge(stopped)
        assert (found.verdict, found.reason) == ("undecided", f"timeout: it ran longer than 0.2 s{whose}")
    large = many.format("LIMIT 900", "zeroblob(900000) AS z") + " ORDER BY z"
    with open_verifier(settings(databases, timeout=150.0, memory_gb=1.0), None) as verifier:  # SQLite keeps the limit
        too_large, too_long = verifier.verify([case(large), case(long)])
    assert (too_large.verdict, too_large.reason) == ("undecided", "memory: it needs more than 250,000,000 bytes")
    assert too_long.verdict == "wrong"
    assert too_long.reason.startswith("its result has more than 100,000 rows")


def test_a_database_that_cannot_be_read_decides_nothing(databases: Path, tmp_path: Path) -> None:
    """A right response is not wrong because a file is lost, or damaged, after its reference was executed."""
    file = tmp_path / "pets" / "pets.sqlite"
    shutil.copytree(databases / "pets", file.parent)
    judge = open_judge(settings(tmp_path))
    assert judge(case(PETS)).verdict == "right"
    file.write_bytes(b"x" * 4096)
    assert [judge(case(PETS)).verdict, judge(case(PETS)).reason] == ["undecided", "file is not a database"]
    file.unlink()
    assert [judge(case(PETS)).verdict, judge(case(PETS)).reason] == ["undecided", f"there is no database {file}"]


def test_half_a_database_decides_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pets" / "pets.sqlite"
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE pet (name TEXT, age INTEGER)")
        connection.executemany("INSERT INTO pet VALUES (?, ?)", [(f"pet {n}", n) for n in range(2000)])
        connection.commit()
    sql = "SELECT name FROM pet WHERE age = 1999"
    judge, last = open_judge(settings(tmp_path)), case(sql, sql)
    assert judge(last).verdict == "right"
    os.truncate(file, file.stat().st_size // 4096 // 2 * 4096)
    assert (judge(last).verdict, judge(last).reason) == ("undecided", "database disk image is malformed")


def test_changes_beside_a_linked_database_are_refused(databases: Path, tmp_path: Path) -> None:
    """`iris sql-pairs` writes links."""
    shutil.copytree(databases / "pets", tmp_path / "real")
    link = tmp_path / "links" / "pets" / "pets.sqlite"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "real" / "pets.sqlite")
    with closing(sqlite3.connect(tmp_path / "real" / "pets.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO pet VALUES ('Leo', 9)")
        connection.commit()
        with pytest.raises(DataError, match=r"pets\.sqlite-wal beside it holds"):
            check(settings(tmp_path / "links"))


def test_changes_beside_a_database_are_refused(databases: Path, tmp_path: Path) -> None:
    shutil.copytree(databases / "pets", tmp_path / "pets")
    with closing(sqlite3.connect(tmp_path / "pets" / "pets.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO pet VALUES ('Leo', 9)")
        connection.commit()
        with pytest.raises(
            DataError, match=r"pets\.sqlite is not all of the database, pets\.sqlite-wal beside it holds"
        ):
            check(settings(tmp_path))
    check(settings(tmp_path))  # closing wrote them into the database


def test_another_sqlite_judges_anew(databases: Path) -> None:
    assert verifier_versions(settings(databases))["SQLite"] == sqlite3.sqlite_version
    assert verifier_versions(settings(databases))["SQL rules"] == "4"
    assert "SQLite" not in verifier_versions(VerificationPart(kind="math"))


def test_missing_databases_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"verification\.databases: .* holds no <db_id>/<db_id>\.sqlite"):
        check(settings(tmp_path))


def test_hostile_responses_do_not_stop_a_verifier(databases: Path) -> None:
    """In the verifier's real processes: each hostile response has a verdict, and the next ones are judged."""
    hostile = [
        "ATTACH 'x' AS y",
        "SELECT load_extension('x')",
        "SELECT COUNT(*) FROM (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c)",
        "SELECT hex(zeroblob(900000)) LIKE '" + "%0" * 90 + "%1'",
        "SELECT " + "(" * 90_000,
        "WITH RECURSIVE c(n) AS (SELECT zeroblob(500000) UNION SELECT n || 'x' FROM c) SELECT COUNT(*) FROM c",
    ]
    before = file_digest(databases / "pets" / "pets.sqlite")
    with open_verifier(settings(databases, timeout=2.0), None) as verifier:
        found = verifier.verify([case(response) for response in hostile])
        assert all(verdict.verdict in ("wrong", "undecided") for verdict in found), found
        assert [verdict.verdict for verdict in verifier.verify([case(PETS)] * 3)] == ["right"] * 3
    assert file_digest(databases / "pets" / "pets.sqlite") == before
