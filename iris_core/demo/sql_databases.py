"""Small databases with questions, in Spider's folder format: what text-to-SQL runs on here.

Every database has two tables, of which the second refers to the first. Questions come from templates (`sql_phrases`),
filled with tables, columns and values of a database. Eight databases are in `train_spider.json` and four in `dev.json`;
two have no questions, for synthesis. Each query runs on its database with a result that is not empty, NULL or 0; no
question occurs twice in a database; numbers in a column differ, so an ORDER BY has no ties.

    python -m iris_core.demo.sql_databases --seed 0 --questions 48 --out DIR

writes `DIR/database/<db_id>/<db_id>.sqlite`, `DIR/train_spider.json` and `DIR/dev.json`. There is no `tables.json`: the
schema is read from the databases.
"""

import argparse
import json
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from iris_core.common.errors import ConfigError
from iris_core.common.files import write_atomic
from iris_core.demo.sql_phrases import AGGREGATES, DATABASES, HELD_OUT, TEMPLATES, WITHOUT_QUESTIONS, Table
from iris_core.sql.execution import Limits, execute
from iris_core.sql.results import tells_something

QUESTIONS = 48  # of a database
PARENTS, CHILDREN = 8, 24  # rows of the two tables
MAX_REDRAWS = 2000  # in a row, after which a database has no more questions

Record = dict[str, Any]


def write_folder(out: Path, seed: int, questions: int = QUESTIONS) -> None:
    """Writes all databases and the questions of those that have some.

    Args:
        out: the folder.
        seed: of values and questions.
        questions: of each database.

    Raises:
        ConfigError: a database has fewer different questions.
    """
    splits: dict[str, list[dict[str, str]]] = {"train_spider": [], "dev": []}
    for db_id, tables in DATABASES.items():
        rng = random.Random(f"{seed}-{db_id}")
        rows = table_rows(tables, rng)
        file = out / "database" / db_id / f"{db_id}.sqlite"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_database(file, tables, rows)
        if db_id not in WITHOUT_QUESTIONS:
            split = splits["dev" if db_id in HELD_OUT else "train_spider"]
            split += [{"db_id": db_id, **each} for each in draw(file, tables, rows, questions, rng)]
    for name, found in splits.items():
        write_atomic(out / f"{name}.json", json.dumps(found, indent=1) + "\n")


def table_rows(tables: tuple[Table, Table], rng: random.Random) -> list[list[Record]]:
    """The rows of a database's two tables. One row of the first has none that refers to it."""
    parent, child = tables
    parents = _rows(parent, PARENTS, rng)
    children = _rows(child, CHILDREN, rng)
    for row in children:
        row[f"{parent.name}_id"] = rng.randint(1, PARENTS - 1)
    return [parents, children]


def _rows(table: Table, count: int, rng: random.Random) -> list[Record]:
    names = rng.sample(table.names, count)
    numbers = {column: rng.sample(values, count) for column, values in table.numbers.items()}
    return [
        {
            "id": index + 1,
            "name": names[index],
            table.category: rng.choice(table.values),
            **{column: values[index] for column, values in numbers.items()},
        }
        for index in range(count)
    ]


def write_database(file: Path, tables: tuple[Table, Table], rows: list[list[Record]]) -> None:
    """Writes a SQLite file, replacing one that is there."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table, parent, records in zip(tables, (None, tables[0]), rows, strict=True):
            connection.execute(create(table, parent))
            places = ", ".join(f":{column}" for column in records[0])
            connection.executemany(f"INSERT INTO {table.name} ({', '.join(records[0])}) VALUES ({places})", records)
        connection.commit()
    new.replace(file)


def create(table: Table, parent: Table | None) -> str:
    """The statement that creates `table`, which refers to `parent`."""
    columns = ["id INTEGER PRIMARY KEY", "name TEXT", f"{table.category} TEXT"]
    columns += [f"{column} INTEGER" for column in table.numbers]
    if parent:
        columns.append(f"{parent.name}_id INTEGER REFERENCES {parent.name}(id)")
    return f"CREATE TABLE {table.name} ({', '.join(columns)})"


def draw(
    file: Path, tables: tuple[Table, Table], rows: list[list[Record]], count: int, rng: random.Random
) -> list[dict[str, str]]:
    """Draws questions with their queries for one database; templates take turns.

    Raises:
        ConfigError: it has fewer than `count` different ones.
    """
    found: dict[str, str] = {}
    redraws = number = 0
    while len(found) < count:
        wordings, query = TEMPLATES[number % len(TEMPLATES)]
        number += 1
        values = fill(tables, rows, "{p}" in query, rng)
        question, query = rng.choice(wordings).format(**values), query.format(**values)
        new = question not in found and query not in found.values()
        if new and tells_something(execute(file, query, Limits())):
            found[question] = query
            redraws = 0
        elif (redraws := redraws + 1) == MAX_REDRAWS:
            raise ConfigError(f"{file.stem} has only {len(found)} different questions, not {count}: ask for fewer")
    return [{"question": question, "query": query} for question, query in found.items()]


def fill(tables: tuple[Table, Table], rows: list[list[Record]], joins: bool, rng: random.Random) -> dict[str, object]:
    """Values for the places of a template, of one table; of the second with its parent if it `joins` both."""
    index = 1 if joins else rng.randrange(2)
    table, row = tables[index], rng.choice(rows[index])
    parent, parent_row = tables[0], rng.choice(rows[0])
    number, (word, function) = rng.choice(list(table.numbers)), rng.choice(AGGREGATES)
    return {
        "t": table.name,
        "ts": table.plural,
        "c": table.category,
        "v": row[table.category],
        "n": number,
        "x": row[number],
        "name": row["name"],
        "word": word,
        "f": function,
        "p": parent.name,
        "ps": parent.plural,
        "pc": parent.category,
        "pv": parent_row[parent.category],
        "pname": parent_row["name"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: write the folder; a bad argument ends it with status 2 and one line that says why."""
    parser = argparse.ArgumentParser(
        prog="python -m iris_core.demo.sql_databases", description="Generate small databases with questions."
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of each database (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    args = parser.parse_args(argv)
    try:
        write_folder(args.out, args.seed, args.questions)
    except ConfigError as error:
        parser.error(str(error))
    print(f"{len(DATABASES)} databases in {args.out / 'database'}, questions in train_spider.json and dev.json")


if __name__ == "__main__":
    main()
