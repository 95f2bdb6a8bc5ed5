"""The miniature: what is committed is what is built, complete for the ten, and right where a program can tell."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from iris_core.evaluation.benchmarks import BENCHMARKS, LABEL_FILE, data_sets, leaves, task_manager
from iris_core.evaluation.miniature import FOLDER, LABEL
from iris_core.evaluation.miniature.build import build
from iris_core.evaluation.mirror import in_mirror

pytestmark = pytest.mark.unit


def rows(place: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{place}.jsonl").read_text().splitlines()]


def bbh(task: str) -> tuple[str, str]:
    (row,) = rows(f"SaylorTwift/bbh/{task}/test")
    return row["input"], row["target"]


def test_what_is_committed_is_what_is_built(tmp_path: Path) -> None:
    build(tmp_path)
    built = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    committed = {file.relative_to(FOLDER): file.read_text() for file in FOLDER.rglob("*") if file.is_file()}
    assert built == committed


def test_it_is_labelled() -> None:
    assert (FOLDER / LABEL_FILE).read_text().strip() == LABEL == "miniature"


def test_it_has_every_data_set_that_the_ten_read() -> None:
    assert [item for item in data_sets(BENCHMARKS) if not in_mirror(FOLDER, item)] == []


@pytest.mark.parametrize(
    ("place", "shots"),
    [
        ("openai/gsm8k/main/train", 5),
        ("TIGER-Lab/MMLU-Pro/default/validation", 5),
        ("Rowan/hellaswag/default/train", 11),
        ("allenai/winogrande/winogrande_xl/train", 6),
        *((f"cais/mmlu/{s.name}/dev", 5) for s in sorted((FOLDER / "cais/mmlu").iterdir()) if s.is_dir()),
    ],
)
def test_there_are_enough_examples_for_the_shots(place: str, shots: int) -> None:
    assert len(rows(place)) >= shots


def test_no_scored_item_is_an_example_too() -> None:
    for examples in FOLDER.rglob("*.jsonl"):
        if examples.stem in ("train", "dev") and (scored := examples.with_stem("test")).exists():
            assert not set(examples.read_text().splitlines()) & set(scored.read_text().splitlines())


def test_gsm8k_arithmetic() -> None:
    for row in rows("openai/gsm8k/main/train") + rows("openai/gsm8k/main/test"):
        steps = re.findall(r"<<(.+?)=(.+?)>>", row["answer"])
        assert all(eval(left) == float(right) for left, right in steps)
        assert row["answer"].endswith(f"#### {steps[-1][1]}")


def test_mmlu_items_have_four_options_and_evenly_spread_answers() -> None:
    items = [
        row
        for subject in (FOLDER / "cais/mmlu").iterdir()
        if subject.is_dir()
        for split in ("dev", "test")
        for row in rows(f"cais/mmlu/{subject.name}/{split}")
    ]
    assert len(items) == 57 * 6
    assert all(len(set(item["choices"])) == 4 for item in items)
    assert len({item["question"] for item in items if "derivative" not in item["question"]}) >= 335
    assert min(Counter(item["answer"] for item in items).values()) > 60


def test_mmlu_pro_letters_are_those_of_the_answers() -> None:
    for row in rows("TIGER-Lab/MMLU-Pro/default/test"):
        assert len(set(row["options"])) == 10
        assert "ABCDEFGHIJ".index(row["answer"]) == row["answer_index"]
    first = rows("TIGER-Lab/MMLU-Pro/default/test")[0]
    assert first["options"][first["answer_index"]] == "210"


def test_math_answers_are_boxed_and_hard() -> None:
    for config in (FOLDER / "DigitalLearningGmbH/MATH-lighteval").iterdir():
        if config.is_dir():
            (row,) = rows(f"DigitalLearningGmbH/MATH-lighteval/{config.name}/test")
            assert row["level"] == "Level 5"
            assert row["solution"].count("\\boxed{") == 1


def test_musr_choices_hold_the_answer() -> None:
    for split in ("murder_mysteries", "object_placements", "team_allocation"):
        (row,) = rows(f"TAUR-Lab/MuSR/default/{split}")
        assert ast.literal_eval(row["choices"])[row["answer_index"]] == row["answer_choice"]


def test_bbh_targets_are_choices_of_their_task() -> None:
    for leaf in leaves("leaderboard_bbh", task_manager()):
        text, target = bbh(leaf["dataset_name"])
        assert target in leaf["doc_to_choice"]
        if target.startswith("("):
            assert f"\n{target} " in text


def test_bbh_boolean_expression() -> None:
    text, target = bbh("boolean_expressions")
    assert str(eval(text.removesuffix(" is"))) == target


@pytest.mark.parametrize("count", ["three", "five", "seven"])
def test_bbh_tracking(count: str) -> None:
    text, target = bbh(f"tracking_shuffled_objects_{count}_objects")
    held = dict(re.findall(r"(\w+) has a (\w+ ball)", text))
    for one, other in re.findall(r"(\w+) and (\w+) swap balls", text):
        held[one], held[other] = held[other], held[one]
    who = re.search(r"game, (\w+) has the", text)
    assert who
    assert f"{target} {held[who[1]]}" in text


def test_bbh_logical_deduction_has_one_solution() -> None:
    from itertools import permutations

    found = [
        p
        for p in permutations(("red", "blue", "green", "black", "white"))
        if p[0] == "red" and p[1] == "blue" and p[4] == "green" and p.index("black") < p.index("white")
    ]
    assert [p[2] for p in found] == ["black"]
    text, target = bbh("logical_deduction_five_objects")
    assert f"{target} The black book" in text


def test_ifeval_instructions_can_be_followed() -> None:
    pytest.importorskip("langdetect")
    import nltk

    nltk.data.path.insert(0, str(FOLDER / "nltk_data"))
    from lm_eval.tasks.leaderboard.ifeval import utils

    answers = (
        "It rains all day. The streets shine.",
        "* Building a wall\n* Holding a door\n* Pressing flowers",
        "The wind carries salt over the waves.",
        '"They purr when they are calm."',
        "<<Bread>>\nWarm and round.",
    )
    items = rows("wis-k/instruction-following-eval/default/train")
    for item, answer in zip(items, answers, strict=True):
        assert utils.process_results(item, [answer])["prompt_level_strict_acc"]
        assert not utils.process_results(item, ["No, nothing"])["prompt_level_strict_acc"]
