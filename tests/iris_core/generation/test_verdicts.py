"""What the verdicts on responses say of the data: counts, and the warnings that follow."""

from typing import Any

import pytest

from iris_core.config import GenerationPart
from iris_core.generate import summarize
from iris_core.generation.verdicts import count_verdicts, mixed_warnings

pytestmark = pytest.mark.unit


def judged(*prompts: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Responses and verdicts: a text such as "rwu" for each prompt that is trained on; one is held out and right."""
    letters = [(f"id{number}", letter) for number, prompt in enumerate(prompts) for letter in prompt]
    names = {"r": "right", "w": "wrong", "u": "undecided"}
    row = {"split": "train", "token_ids": [1], "response": "x", "finish_reason": "stop"}
    rows = [*({**row, "prompt_id": prompt} for prompt, _ in letters), {**row, "prompt_id": "out", "split": "heldout"}]
    verdicts = [names[letter] for _, letter in letters] + ["right"]
    return rows, [{"verdict": verdict, "reason": "timeout"} for verdict in verdicts]


def test_shares_are_of_responses_and_of_prompts() -> None:
    found = summarize(GenerationPart(samples=3), *judged("rrw", "www", "rru", "rwu"), 1.0)
    assert (found.right, found.wrong, found.undecided) == (5, 5, 2)
    assert (found.judged_prompts, found.mixed, found.heldout_right) == (4, 2, 1.0)
    assert found.shares == pytest.approx({"right": 5 / 12, "wrong": 5 / 12, "undecided": 2 / 12, "mixed": 2 / 4})
    assert found.responses == 13
    (line,) = found.warnings
    assert line.startswith("verification: 2 of 13 synthetic responses are undecided")


def test_held_out_prompts_without_a_reference_do_not_count():
    """As in `evaluate`, which does not answer them."""
    rows, verdicts = judged("rw")
    rows = [*rows, *({**rows[-1], "prompt_id": name} for name in ("more", "less"))]
    undecided = [{"verdict": "undecided", "reason": reason} for reason in ("no reference", "timeout")]
    assert count_verdicts(rows, [*verdicts, *undecided])["heldout_right"] == 1 / 2


def test_an_objective_that_learns_nothing_from_verdicts_is_not_told_what_they_teach():
    rows, verdicts = judged(*["w"] * 31)
    assert summarize(GenerationPart(), rows, verdicts, 1.0).warnings == []
    (line,) = summarize(GenerationPart(samples=1), rows, verdicts, 1.0).warnings
    assert "verdicts teach little" in line


@pytest.mark.parametrize(
    ("samples", "prompts", "message"),
    [
        (2, ["rr"] * 30 + ["rw"], "both right and wrong responses to 1 of 31 prompts, nearly all others are right"),
        (2, ["ww"] * 30 + ["rw"], "teach little: take easier prompts, or raise generation.samples"),
        (1, ["w"] * 30 + ["r"], "1 right and 30 wrong responses to 31 prompts, nearly all others are wrong"),
        (2, ["rr"] * 18 + ["rw"], None),
        (1, ["w"] * 18 + ["r"], None),
    ],
)
def test_verdicts_that_are_all_alike_are_warned_of(samples: int, prompts: list[str], message: str | None) -> None:
    found = mixed_warnings(count_verdicts(*judged(*prompts)), samples)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
