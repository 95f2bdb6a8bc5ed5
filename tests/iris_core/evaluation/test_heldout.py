"""Answers in held-out texts: what a pattern finds, and which pairs can be checked."""

import pytest

from iris_core.common.errors import DataError
from iris_core.data.pairs import Pair
from iris_core.evaluation.heldout import checkable
from iris_core.verification.patterns import extract

pytestmark = pytest.mark.unit

PATTERN = r"Answer: *(.+)"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer: 1\nno\nAnswer:  42 ", "42"),
        ("The end", None),
        ("Answer: x", "x"),
    ],
)
def test_the_last_capture_counts(text: str, found: str | None) -> None:
    assert extract(PATTERN, text) == found


def test_a_pattern_without_a_group_counts_whole() -> None:
    assert extract(r"\d+", "1 and 23") == "23"


def test_pairs_without_an_answer_are_left_out() -> None:
    pairs = [Pair("a", "1 + 1?", "Answer: 2", [1], [2]), Pair("b", "Why?", "No pattern here", [1], [2])]
    assert checkable(PATTERN, pairs) == pairs[:1]
    assert checkable(PATTERN, []) == []
    with pytest.raises(
        DataError, match=r"answer_pattern: 'Result=.*found in no annotated held-out answer.*'Answer: 2'"
    ):
        checkable("Result=(.*)", pairs)
