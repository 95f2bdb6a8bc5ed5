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
