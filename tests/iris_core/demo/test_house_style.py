"""The demo's annotated set: reproducible, without leakage, in its style, and correct.

Every answer is computed again from the text of its prompt alone, without code of the generator.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from iris_core.common.errors import ConfigError
from iris_core.demo.house_style import (
    ANSWER_PATTERN,
    HELDOUT_PAIRS,
    KINDS,
    TRAIN_PAIRS,
    Pair,
    annotated_set,
    draw,
    further_prompts,
    main,
    write_jsonl,
)

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
SEEDS = (0, 1, 2)
SYMBOLS = {
    "meters": "m",
    "centimeters": "cm",
    "millimeters": "mm",
    "kilometers": "km",
    "kilograms": "kg",
    "grams": "g",
    "liters": "L",
    "milliliters": "mL",
    "hours": "h",
    "minutes": "min",
    "seconds": "s",
}
IN_BASE_UNITS = {
    "mm": Fraction(1, 1000),
    "cm": Fraction(1, 100),
    "m": Fraction(1),
    "km": Fraction(1000),
    "g": Fraction(1),
    "kg": Fraction(1000),
    "mL": Fraction(1, 1000),
    "L": Fraction(1),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
}
WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def pairs_of(kind: str) -> list[Pair]:
    """All pairs of one kind, of three seeds."""
    sets = [annotated_set(seed, 320, 80) for seed in SEEDS]
    return [pair for parts in sets for part in parts for pair in part if pair.kind == kind]


def captured(pair: Pair) -> str:
    """The answer that exact match compares."""
    found: list[str] = re.findall(ANSWER_PATTERN, pair.response)
    return found[-1].strip()


def integers(text: str) -> list[int]:
    """The whole numbers of a text, in its order."""
    return [int(number) for number in re.findall(r"\d+", text)]


def expected_quantity(prompt: str) -> str:
    """3 m to cm: 3 * 1 / (1/100) = 300, so `300 cm`."""
    units = [SYMBOLS.get(word, word) for word in re.findall(r"[A-Za-z]+", prompt)]
    units = [unit for unit in units if unit in IN_BASE_UNITS]
    source, target = reversed(units) if prompt.startswith("How many") else units
    amount = Fraction(re.findall(r"[\d.]*\d", prompt)[0])
    value = amount * IN_BASE_UNITS[source] / IN_BASE_UNITS[target]
    return f"{float(value):g} {target}"


def expected_number(prompt: str) -> str:
    """`4 boxes of 3 pens and 9 loose pens`: 4 * 3 + 9 = 21; `add 3 to 4, subtract 2`: 5."""
    a, b, c = integers(prompt)
    product = re.search(r" x | times |Multiply|boxes", prompt)
    return str(a * b + c if product else a + b - c)


def expected_day(prompt: str) -> str:
    """`3 March 2024` and `March 3, 2024`: 2024-03-03; 2 days after Monday: Wednesday."""
    for found, form in (
        (re.search(r"\d+ [A-Z][a-z]+ \d{4}", prompt), "%d %B %Y"),
        (re.search(r"[A-Z][a-z]+ \d+, \d{4}", prompt), "%B %d, %Y"),
    ):
        if found:
            return datetime.strptime(found[0], form).date().isoformat()
    start = next(index for index, day in enumerate(WEEK) if day in prompt)
    back = re.search(r"before|ago|was it sent", prompt)
    (steps,) = integers(prompt)
    return WEEK[(start - steps if back else start + steps) % 7]


def expected_record(prompt: str) -> str:
    """`Ada lives in Rome.`: {"name": "Ada", "city": "Rome"}; a price is a JSON number."""
    if "city" in prompt:
        city = re.search(r"\b[Ii]n ([A-Z][a-z]+)|to ([A-Z][a-z]+) last", prompt)
        name = re.search(r"([A-Z][a-z]+) (?:lives|moved|runs|works)", prompt)
        assert city
        assert name
        return f'{{"name": "{name[1]}", "city": "{city[1] or city[2]}"}}'
    item = re.search(r"(?:for a|bought a|sold a|The) ([a-z]+)[. ]", prompt)
    assert item
    return f'{{"item": "{item[1]}", "price": {integers(prompt)[0]}}}'


def expected_order(prompt: str) -> str:
    """The three numbers, falling when the prompt names the largest first."""
    falling = re.search(r"from largest|largest first", prompt) is not None
    return ", ".join(map(str, sorted(integers(prompt), reverse=falling)))


def expected_extreme(prompt: str) -> str:
    """The maximum or the minimum of the three numbers."""
    largest = re.search(r"largest|biggest|highest", prompt)
    return str(max(integers(prompt)) if largest else min(integers(prompt)))


def expected_count(prompt: str) -> str:
    """The commas of the list, and one."""
    return str(prompt.removesuffix(".").count(",") + 1)


EXPECTED = {
    "units": expected_quantity,
    "arithmetic": expected_number,
    "dates": expected_day,
    "extraction": expected_record,
    "sorting": expected_order,
    "extremes": expected_extreme,
    "counting": expected_count,
}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right(kind: str) -> None:
    for pair in pairs_of(kind):
        assert captured(pair) == EXPECTED[kind](pair.prompt), pair


def test_sums_in_the_reasoning_are_right() -> None:
    for pair in pairs_of("arithmetic"):
        steps = re.findall(r"(\d+) ([+x-]) (\d+) is (\d+)", pair.response)
        assert len(steps) == 2, pair
        for left, sign, right, result in steps:
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "x": a * b}[sign] == int(result), pair
        assert steps[1][0] == steps[0][3], pair


def test_conversions_in_the_reasoning_are_right() -> None:
    quantity = r"([\d.]*\d) (\w+)"
    for pair in pairs_of("units"):
        claims = re.findall(rf"{quantity} is {quantity}", pair.response)
        assert len(claims) == 2, pair
        for x, source, y, target in claims:
            assert Fraction(x) * IN_BASE_UNITS[source] == Fraction(y) * IN_BASE_UNITS[target], pair


def test_other_reasoning_agrees_with_prompt_and_answer() -> None:
    for pair in pairs_of("dates"):
        listed = re.findall(r"\w+", pair.response.split("\n")[0])
        last = [listed[3], listed[8]] if "month" in listed else [listed[-1]]
        assert last == (captured(pair).split("-")[1:] or [captured(pair)]), pair
    for pair in pairs_of("sorting"):
        first, _, last_number = captured(pair).split(", ")
        assert integers(pair.response)[:2] == [int(first), int(last_number)], pair
    for pair in pairs_of("extremes"):
        numbers = [*integers(pair.prompt), int(captured(pair)), int(captured(pair))]
        assert integers(pair.response) == numbers, pair
    for pair in pairs_of("counting"):
        things = re.findall(r"(\w+) (\d+)", pair.response.split("\n")[0])
        assert [int(number) for _, number in things] == list(range(1, len(things) + 1)), pair
        assert ", ".join(thing for thing, _ in things) in pair.prompt, pair


@pytest.mark.parametrize("seed", SEEDS)
def test_every_response_is_a_line_of_reasoning_and_the_answer(seed: int) -> None:
    for part in annotated_set(seed, 320, 80):
        for pair in part:
            reasoning, last = pair.response.split("\n")
            matches = list(re.finditer(ANSWER_PATTERN, pair.response))
            assert len(matches) == 1, pair
            assert matches[0].end() == len(pair.response), pair
            assert last == f"Answer: {captured(pair)}", pair
            assert reasoning.endswith("."), pair
            assert max(len(reasoning), len(pair.prompt)) <= 100, pair


def test_json_answers_have_one_spelling() -> None:
    for pair in pairs_of("extraction"):
        assert json.dumps(json.loads(captured(pair))) == captured(pair)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_occurs_twice_within_or_across_the_parts(seed: int) -> None:
    train, heldout = annotated_set(seed, 320, 80)
    for column in ("id", "prompt", "response"):
        values = [getattr(pair, column) for pair in train + heldout]
        assert len(set(values)) == 400, column


@pytest.mark.parametrize(("train", "heldout"), [(320, 80), (70, 7), (71, 20)])
def test_kinds_are_balanced_to_within_one(train: int, heldout: int) -> None:
    for part, total in zip(annotated_set(0, train, heldout), (train, heldout), strict=True):
        counts = Counter(pair.kind for pair in part)
        assert counts.total() == total
        assert counts.keys() == KINDS.keys()
        assert max(counts.values()) - min(counts.values()) <= 1


def test_kinds_are_mixed_in_the_order() -> None:
    train, _ = annotated_set(0, 320, 80)
    changes = sum(one.kind != next_.kind for one, next_ in pairwise(train))
    assert changes > 200  # 6 if they came kind by kind, 273 expected of a shuffle


def test_every_kind_is_asked_in_four_ways_at_least() -> None:
    """Questions are told apart by their first two words, without numbers."""
    for kind in KINDS:
        prompts = [re.sub(r"\d+", "#", pair.prompt) for pair in pairs_of(kind)]
        openings = {" ".join(prompt.split()[:2]) for prompt in prompts}
        assert len(openings) >= 4, kind


def test_heldout_pairs_do_not_depend_on_the_number_to_train_on() -> None:
    assert annotated_set(3, 70, 21)[1] == annotated_set(3, 320, 21)[1]


def test_files_are_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Two processes with different string hashing: the order of sets decides nothing."""
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "iris_core.demo.house_style", "--seed", "5"]
        command += ["--train", "32", "--heldout", "8", "--out", str(tmp_path / hash_seed)]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    for name in ("pairs.jsonl", "heldout.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_seeds_differ() -> None:
    prompts = [{pair.prompt for pair in annotated_set(seed, 320, 80)[0]} for seed in SEEDS]
    assert len(prompts[0] & prompts[1]) < 100


def test_files_hold_the_documented_columns(tmp_path: Path) -> None:
    main(["--seed", "7", "--train", "21", "--heldout", "14", "--out", str(tmp_path / "new")])
    expected = annotated_set(7, 21, 14)
    for name, pairs in zip(("pairs.jsonl", "heldout.jsonl"), expected, strict=True):
        text = (tmp_path / "new" / name).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        assert [list(row) for row in rows] == [["id", "kind", "prompt", "response", "reference"]] * len(pairs)
        assert [Pair(**row) for row in rows] == pairs


def test_the_reference_is_what_the_pattern_captures() -> None:
    for pair in annotated_set(3, 70, 21)[0]:
        assert captured(pair) == pair.reference


def test_further_prompts_are_none_of_the_pairs_and_have_no_response(tmp_path: Path) -> None:
    train, heldout = annotated_set(3, TRAIN_PAIRS, HELDOUT_PAIRS)
    prompts = further_prompts(3, 40)
    assert len(prompts) == 40
    assert not {pair.prompt for pair in prompts} & {pair.prompt for pair in train + heldout}
    write_jsonl(tmp_path / "prompts.jsonl", prompts, annotated=False)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"id": pair.id, "kind": pair.kind, "prompt": pair.prompt, "reference": pair.reference} for pair in prompts
    ]


def test_more_questions_than_a_kind_has_is_an_error() -> None:
    """Units: 5 metric pairs x 16 amounts + 2 of time x 8, each both ways: 192 questions."""
    assert len(draw("units", 192, 0)) == 192
    with pytest.raises(ConfigError, match=r"'units' has only 192 .* 193 were asked for"):
        draw("units", 193, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "6"], "train is 6: must be at least 7"),
        (["--heldout", "-1"], "heldout is -1: must be at least 7"),
        (["--train", "5000"], "ask for fewer pairs"),
        (["--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_bad_arguments_end_with_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_lengths_are_printed_in_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer of words: the shortest of these prompts has 5, `What is 450 cm in m?` has 6."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    main(["--out", str(tmp_path), "--tokenizer", str(tmp_path / "tokenizer.json")])
    train, heldout = annotated_set(0, 320, 80)
    longest = max(len(pair.response.split()) for pair in train + heldout)
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] == "response"
    assert int(last[-1]) == longest
