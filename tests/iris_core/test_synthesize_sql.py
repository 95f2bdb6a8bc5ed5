"""Pairs that a model makes itself: which stay, on which databases; and the whole command on a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from iris_core import synthesize_sql
from iris_core.common.errors import ConfigError, DataError
from iris_core.config import Experiment, parse_experiment
from iris_core.demo.sql_databases import write_folder
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Folder, Question, write_pairs
from iris_core.store import Store
from iris_core.synthesize_sql import Model, Report, Synthesis, open_databases, read_pairs, synthesize
from iris_core.verification.verifier import open_verifier

COUNT = "SELECT COUNT(*) FROM exhibit"
DESERT = "SELECT name FROM exhibit WHERE climate = 'desert'"
OLDEST = "SELECT name FROM keeper ORDER BY age DESC LIMIT 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("databases")
    write_folder(found, seed=0, questions=20)
    write_pairs(Folder(found), found, Budget(len, 10_000))
    return found


def experiment(folder: Path, model: Path, store: Path, **data: object) -> Experiment:
    return parse_experiment(
        {
            "name": "synthesis",
            "store": str(store),
            "model": {"path": str(model)},
            "data": {
                "path": str(folder / "pairs.jsonl"),
                "heldout_path": str(folder / "heldout.jsonl"),
                "reference_column": "reference",
                **data,
            },
            "verification": {"kind": "sql", "databases": str(folder / "databases"), "timeout": 2.0},
            "generation": {"backend": "transformers", "max_new_tokens": 4},
        }
    )


class Planted:
    """A model whose answers are known, by how the prompts begin and end."""

    budget = Budget(len, 10_000)
    digest = "model"

    def __init__(self, settings: Experiment, answers: list[list[list[str]]]):
        self.experiment, self.answers, self.prompts = settings, answers, list[list[str]]()

    def answer(self, prompts: list[str], samples: int, *, greedy: bool = False) -> list[list[str]]:
        self.prompts.append(prompts)
        return self.answers.pop(0)


@pytest.mark.unit
def test_databases_that_are_held_out_are_not_used(folder: Path, tmp_path: Path) -> None:
    settings = experiment(folder, tmp_path, tmp_path)
    held = {each.db_id for each in read_pairs(settings, "heldout_path")}
    assert held == {"hospital", "museum", "railway", "restaurant"}
    assert set(open_databases(settings)) == set(Folder(folder).databases) - held
    assert {"zoo", "publisher"} <= set(open_databases(settings))


@pytest.mark.unit
def test_what_the_model_makes_is_kept_where_it_holds(folder: Path, tmp_path: Path) -> None:
    """Of six queries two are worth a question each: one runs not, one is constant, one is empty, one is there twice.

    The model answers its first question with another result, and the second one with the same.
    """
    written = [DESERT, f"{DESERT} -- again", "SELECT nothing", "SELECT 1", f"{COUNT} WHERE area > 9999", OLDEST]
    asked = ["Which exhibits have a desert climate?", "Question: Who is the oldest keeper?"]
    answers = [[written], [[each] for each in asked], [[COUNT, OLDEST], ["no idea", f"```sql\n{OLDEST}\n```"]]]
    settings = experiment(folder, tmp_path, tmp_path)
    model = Planted(settings, answers)
    databases = {"zoo": open_databases(settings)["zoo"]}
    annotated = read_pairs(settings, "path")
    with open_verifier(settings.verification, None) as verifier:
        steps = Synthesis(cast(Model, model), verifier, databases, annotated, Report())
        queries = steps.queries(8)
        assert [each.query for each in queries] == [DESERT, OLDEST]
        questions = steps.questions(queries)
        assert [each.question for each in questions] == [asked[0], "Who is the oldest keeper?"]
        assert steps.checked(questions, 2) == [Question("zoo", "Who is the oldest keeper?", OLDEST)]
    assert steps.report.left_out == Counter(
        {
            "query: known": 1,
            "query: does not run": 1,
            "query: no column": 1,
            "query: empty result": 1,
            "question: answered otherwise": 1,
        }
    )
    ((query_prompt,), question_prompts, answer_prompts) = model.prompts
    assert query_prompt.startswith("Database zoo:\nkeeper(id integer key")
    assert all(question_prompt.endswith("Question:") for question_prompt in question_prompts)
    assert answer_prompts[1].endswith("Question: Who is the oldest keeper?")


@pytest.mark.unit
def test_each_question_has_the_verdicts_on_its_own_answers(folder: Path, tmp_path: Path) -> None:
    settings = experiment(folder, tmp_path, tmp_path)
    model = Planted(settings, [[[DESERT, DESERT], ["no idea", "no idea"]]])
    asked = [
        Question("zoo", "Which exhibits have a desert climate?", DESERT),
        Question("zoo", "Who is the oldest keeper?", OLDEST),
    ]
    with open_verifier(settings.verification, None) as verifier:
        steps = Synthesis(cast(Model, model), verifier, {"zoo": open_databases(settings)["zoo"]}, [], Report())
        assert steps.checked(asked, 2) == asked[:1]


@pytest.mark.unit
def test_a_query_that_is_annotated_is_not_new(folder: Path, tmp_path: Path) -> None:
    settings = experiment(folder, tmp_path, tmp_path)
    model = Planted(settings, [[[DESERT, OLDEST]]])
    annotated = [Question("zoo", "Which ones are dry?", DESERT)]
    with open_verifier(settings.verification, None) as verifier:
        steps = Synthesis(cast(Model, model), verifier, {"zoo": open_databases(settings)["zoo"]}, annotated, Report())
        assert [each.query for each in steps.queries(2)] == [OLDEST]
    assert steps.report.left_out == {"query: known": 1}


@pytest.mark.unit
@pytest.mark.parametrize(("answers", "kept"), [(1, [OLDEST]), (0, [DESERT, OLDEST])])
def test_the_file_holds_checked_pairs_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int, kept: list[str]
) -> None:
    """All of them where no answers are asked for."""
    settings = experiment(folder, tmp_path, tmp_path)
    zoo = {"zoo": open_databases(settings)["zoo"]}
    asked = [["Which exhibits have a desert climate?"], ["Who is the oldest keeper?"]]
    planted = Planted(settings, [[[DESERT, OLDEST]], asked, [[COUNT], [OLDEST]]])
    monkeypatch.setattr(synthesize_sql, "open_databases", lambda _: zoo)
    monkeypatch.setattr(synthesize_sql, "Model", lambda *_: planted)
    report = synthesize(settings, tmp_path / "more.jsonl", queries=8, answers=answers)
    rows = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == kept
    assert (report.pairs, rows[0]["model"]) == (len(kept), "model")


@pytest.mark.unit
def test_other_pairs_and_recipes_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "pairs.jsonl"
    other.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    with pytest.raises(ConfigError, match=r"data\.path: .*pairs\.jsonl has no rows with question and reference"):
        read_pairs(experiment(folder, tmp_path, tmp_path, path=str(other)), "path")
    with pytest.raises(ConfigError, match=r"data\.heldout_path"):
        open_databases(experiment(folder, tmp_path, tmp_path, heldout_path=None))


@pytest.mark.unit
def test_a_folder_and_the_recipes_own_data_are_not_replaced(folder: Path, tmp_path: Path) -> None:
    settings = experiment(folder, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"^--out: \S+ is a folder: give a file in it, such as \S+/more\.jsonl$"):
        synthesize(settings, folder, queries=8, answers=1)
    with pytest.raises(ConfigError, match=r"^--out: \S+ is data\.heldout_path of the recipe, and would be replaced"):
        synthesize(settings, folder / "databases" / ".." / "heldout.jsonl", queries=8, answers=1)


@pytest.mark.integration
def test_a_model_that_writes_no_sql_gives_no_pairs_and_is_not_asked_again(
    folder: Path, tmp_path: Path, tiny_model: Path
) -> None:
    settings = experiment(folder, tiny_model, tmp_path / "store")
    for _ in range(2):
        with pytest.raises(DataError, match=r"no pair is left \(\{'query: does not run': 80\}\)"):
            synthesize(settings, tmp_path / "more.jsonl", queries=8, answers=1)
    stages = sorted((Store.of(settings).root).rglob("manifest.json"))
    assert len(stages) == 1
    assert not (tmp_path / "more.jsonl").exists()
