"""Reads folders as Spider and BIRD have them, and writes their questions as ordinary files of pairs.

    spider/  train_spider.json, train_others.json, dev.json, database/<db_id>/<db_id>.sqlite
    bird/    train/train.json, train/train_databases/…, dev_20240627/dev.json, dev_20240627/dev_databases/…

Of several files of held-out questions, as of BIRD's dev set and Mini-Dev, the first is read. Rows have `question`,
`db_id`, the query as `query` (Spider) or `SQL` (BIRD), and BIRD's `evidence`. The schema is read from the databases:
`tables.json` and BIRD's `database_description` are not read. What is written has a prompt with the schema (`prompts`),
the query as the response, and a reference for the verifier `sql`. A database is in one split only: the questions for
training on held-out databases are left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from iris_core.common.errors import DataError, first_line
from iris_core.common.files import replacing, write_atomic
from iris_core.sql.execution import Limits, QueryFailed, QueryStopped, execute
from iris_core.sql.prompts import DETAILS, Budget, prompt
from iris_core.sql.results import tells_something
from iris_core.sql.schema import Table, read_schema

TRAIN = ("train_spider.json", "train_others.json", "train.json", "train/train.json")
HELDOUT = ("dev.json", "dev*/dev.json", *(f"{at}mini_dev_sqlite.json" for at in ("", "*/", "*/*/")))
DATABASES = ("database", "train_databases", "dev_databases")  # beside the questions, or in the folder itself
Row = dict[str, Any]  # of a file of pairs

GOLD = Limits(seconds=30.0, memory_bytes=2_000_000_000)  # the verifier has the same limits of rows and bytes
NO_EVIDENCE = "False"  # what some files of BIRD have in place of ""


class Question(NamedTuple):
    """A question about a database with its query."""

    db_id: str
    question: str
    query: str
    evidence: str = ""


@dataclass
class Folder:
    """A folder in the format of Spider or BIRD.

    Raises:
        DataError: there are no questions, or no databases.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.databases:
            raise DataError(
                f"{self.path} has none of {', '.join(DATABASES)} beside its questions: give a folder as Spider or BIRD "
                "has it"
            )

    @cached_property
    def databases(self) -> dict[str, Path]:
        """The file of each database, by its name."""
        beside = dict.fromkeys([self.path, *(file.parent for file in [*self._train, *self._heldout])])
        folders = [folder / name for folder in beside for name in DATABASES if (folder / name).is_dir()]
        # BIRD's archives nest them; the first pattern also finds those in folders that are links
        files = [file for folder in folders for at in ("*/*.sqlite", "**/*.sqlite") for file in sorted(folder.glob(at))]
        return {file.stem: file for file in files if file.stem == file.parent.name}

    @cached_property
    def heldout(self) -> list[Question]:
        """The questions to measure with."""
        return self._questions(self._heldout, HELDOUT)

    @cached_property
    def train(self) -> list[Question]:
        """The questions to train on, those about held-out databases included."""
        return self._questions(self._train, TRAIN)

    @property
    def heldout_databases(self) -> set[str]:
        """The names of the databases that are never trained on."""
        return {each.db_id for each in self.heldout}

    @cached_property
    def _train(self) -> list[Path]:
        return [self.path / name for name in TRAIN if (self.path / name).is_file()]

    @cached_property
    def _heldout(self) -> list[Path]:
        """The first file of held-out questions, if there is one."""
        return [file for name in HELDOUT for file in sorted(self.path.glob(name))][:1]

    def _questions(self, files: list[Path], names: tuple[str, ...]) -> list[Question]:
        if not files:
            raise DataError(
                f"{self.path} has no questions in {' or '.join(names)}: give a folder as Spider or BIRD has it"
            )
        return [question for file in files for question in read_questions(file)]


@dataclass
class Report:
    """What became of a folder's questions.

    Attributes:
        written: pairs, by file.
        left_out: questions that are not used, by file and reason.
        shortened: prompts with less than the whole schema, by the detail that they have.
        unproven: pairs whose query finds nothing, so that the result of another query proves nothing, by file.
    """

    written: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    shortened: Counter[str] = field(default_factory=Counter)
    unproven: Counter[str] = field(default_factory=Counter)


def read_questions(file: Path) -> list[Question]:
    """The questions in a file of JSON or JSON Lines.

    Raises:
        DataError: it is not a list of objects with question, db_id and query or SQL.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]
        each_is_one = len(lines) > 1 and all(line.startswith("{") for line in lines)
        rows = [json.loads(line) for line in lines] if each_is_one else json.loads(text)
    except ValueError as error:
        raise DataError(f"{file} is not JSON in UTF-8 ({error}): fix it") from error
    if isinstance(rows, dict) and "question" in rows:  # JSON Lines of one question
        rows = [rows]
    if not isinstance(rows, list):
        raise DataError(f"{file} is {type(rows).__name__}, not a list of questions: give the file as released")
    return [_question(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]


def _question(row: Any, where: str) -> Question:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, not an object with question, db_id and query or SQL: fix it")
    found = [_text(row, name, where) for name in ("db_id", "question", "query" if "query" in row else "SQL")]
    db_id, question, query = found
    evidence = _text(row, "evidence", where) if row.get("evidence") else ""
    hint = "" if evidence == NO_EVIDENCE else evidence
    return Question(db_id, question, query.removesuffix(";").strip(), hint)


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A value that must be text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {value!r:.80}, not text: every row needs question, db_id and query or SQL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name} has half of a surrogate pair, {value!r:.80}: fix it") from None
    return value.strip()


def write_pairs(source: Folder, out: Path, budget: Budget, limits: Limits = GOLD) -> Report:
    """Writes `pairs.jsonl`, `heldout.jsonl` and `databases/` to `out`.

    `databases/` has links to the files of all databases, as the verifier needs them in one folder.

    Args:
        source: the questions and databases.
        out: a folder.
        budget: of a prompt.
        limits: of a query; those of the verifier, so that it can judge responses.

    Raises:
        DataError: a split has no usable question, a database cannot be read, or `out` cannot be written.
    """
    report, heldout = Report(), source.heldout_databases
    train = [each for each in source.train if each.db_id not in heldout]
    if left_out := len(source.train) - len(train):
        report.left_out["pairs.jsonl: on a held-out database"] = left_out
    for name, questions in (("pairs", train), ("heldout", source.heldout)):
        file = f"{name}.jsonl"
        rows = list(pairs(questions, source.databases, budget, limits, report, file))
        if not rows:
            raise DataError(f"{source.path} has no usable question for {file}: {dict(report.left_out)}")
        write_rows(out / file, rows)
        report.written[file] = len(rows)
    with _writing(out):
        link_databases(source.databases, out / "databases")
    return report


def pairs(
    questions: list[Question], databases: dict[str, Path], budget: Budget, limits: Limits, report: Report, file: str
) -> Iterator[Row]:
    """Rows of `file` for the usable `questions`; what is unusual of them, and the others, are counted in `report`."""
    schemas: dict[str, list[Table]] = {}
    seen: set[tuple[str, str]] = set()
    for each in questions:
        if problem := _problem(each, databases, seen):
            report.left_out[f"{file}: {problem}"] += 1
            continue
        if each.db_id not in schemas:
            schemas[each.db_id] = read_schema(databases[each.db_id])
        try:
            result = execute(databases[each.db_id], each.query, limits)
        except QueryStopped:
            report.left_out[f"{file}: its query takes more time or memory than the verifier allows"] += 1
            continue
        except QueryFailed:
            report.left_out[f"{file}: its query does not run, or is over a limit"] += 1
            continue
        seen.add((each.db_id, each.question))
        made = prompt(each.db_id, schemas[each.db_id], each.question, budget, each.evidence)
        if not made.fits:
            report.left_out[f"{file}: its prompt is too long"] += 1
            continue
        if made.detail != DETAILS[0].name:
            report.shortened[made.detail] += 1
        if not tells_something(result):
            report.unproven[file] += 1
        yield row(made.text, each)


def row(text: str, question: Question) -> Row:
    """A row of a file of pairs."""
    return {
        "prompt": text,
        "response": question.query,
        "reference": reference(question.db_id, question.query),
        "db_id": question.db_id,
        "question": question.question,
    }


def reference(db_id: str, query: str) -> str:
    """What the verifier `sql` compares a response with."""
    return json.dumps({"db_id": db_id, "sql": query}, ensure_ascii=False)


def _problem(question: Question, databases: dict[str, Path], seen: set[tuple[str, str]]) -> str:
    """Why a question is not used; "" if it is."""
    if not question.question or not question.query:
        return "empty"
    if (question.db_id, question.question) in seen:
        return "asked twice"
    if question.db_id not in databases:
        return "its database is missing"
    return ""


def write_rows(file: Path, rows: list[Row]) -> None:
    """Writes rows as JSON Lines, replacing the file.

    Raises:
        DataError: it cannot be written, or is a folder.
    """
    write_text(file, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))


def write_text(file: Path, text: str) -> None:
    """Writes a file that the user names, replacing it, but no folder.

    Raises:
        DataError: it cannot be written, or is a folder.
    """
    if file.is_dir():
        raise DataError(f"{file} is a folder, and a file is to be written there: remove it, or give another --out")
    with _writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)


def link_databases(databases: dict[str, Path], folder: Path) -> None:
    """Makes `folder/<db_id>/<db_id>.sqlite` a link to the file of each database.

    A link that is there is replaced at once: a verifier may be reading the databases.
    """
    for db_id, file in databases.items():
        link = folder / db_id / f"{db_id}.sqlite"
        link.parent.mkdir(parents=True, exist_ok=True)
        with replacing(link) as temporary:
            temporary.symlink_to(file.absolute())


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """The system's refusal to write as an error that says what to do. A full disk is another matter."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        where = error.filename or out
        raise DataError(f"{where} cannot be written ({first_line(error)}): give another --out") from error
