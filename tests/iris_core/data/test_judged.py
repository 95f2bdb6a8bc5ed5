"""References of pairs, which of them can be judged, and the proof of the verifier on annotated responses."""

from __future__ import annotations

import sys

import pytest

from iris_core.common.errors import DataError, VerificationError
from iris_core.config import VerificationPart
from iris_core.data.judged import case_of, judgeable, prove, reference_of
from iris_core.data.pairs import Pair
from iris_core.verification.verdicts import Case

pytestmark = pytest.mark.unit

PATTERN = r"Answer: (.+)"
ANSWER = VerificationPart(kind="answer")


def pair(name: str, response: str = "", reference: str | None = None, split: str = "train") -> Pair:
    return Pair(name, f"{name}?", response, [1], [2] if response else [], split, reference)


def test_the_reference_is_the_columns_or_the_annotated_response():
    given, annotated, silent, bare = pair("a", "Answer: 1", "2"), pair("b", "Answer: 1"), pair("c", "Hm."), pair("d")
    pairs = [given, annotated, silent, bare]
    assert [reference_of(each, ANSWER, PATTERN) for each in pairs] == ["2", "Answer: 1", None, None]
    schema = VerificationPart(kind="json_schema", schema_path="s.json")
    assert [reference_of(each, schema, PATTERN) for each in pairs] == ["2", "Answer: 1", "Hm.", None]
    assert judgeable(pairs, ANSWER, PATTERN) == [given, annotated]
    assert judgeable(pairs, VerificationPart(kind="math"), None) == [given, annotated, silent]
    assert judgeable(pairs, schema, None) == pairs
    assert case_of(annotated, "x", ANSWER, PATTERN, truncated=True) == Case("b?", "x", "Answer: 1", True)


def test_a_verifier_that_fits_the_data_is_silent():
    pairs = [pair(str(n), f"Answer: {n}", split="heldout" if n < 40 else "train") for n in range(100)]
    assert prove([*pairs, pair("c", "Hm."), pair("d")], ANSWER, PATTERN) == []


def test_some_annotated_responses_that_are_not_right_are_counted():
    """Of 40 held-out pairs, 32 are judged; the last of them differs from its reference, as does the last judged one."""
    pairs = [pair(str(n), f"Answer: {n}", split="heldout" if n < 40 else "train") for n in range(100)]
    for at in (31, 35, 71, 72):  # 31 and 71 are judged
        pairs[at] = pair(str(at), f"Answer: {at}", "0", pairs[at].split)
    assert prove(pairs, ANSWER, PATTERN) == [
        "verification.kind: answer does not find 2 of 64 annotated responses right, such as 'Answer: 31' (wrong: 31 "
        "is not 0)"
    ]


def test_a_verifier_that_finds_none_right_is_an_error():
    message = (
        r"^verification.kind: answer finds none of 2 annotated responses right, such as 'Answer: 1' \(wrong: 1 is not "
        r"7\): fix the data, or the settings of the verifier$"
    )
    with pytest.raises(DataError, match=message):
        prove([pair("a", "Answer: 1", "7"), pair("b", "Answer: 2", "7")], ANSWER, PATTERN)
    with pytest.raises(DataError, match="answer has no reference in any annotated pair"):
        prove([pair("a", "Hm.")], ANSWER, PATTERN)


def test_a_program_that_never_answers_is_found_by_a_few_responses():
    """Four of 64 responses, of half a second each, on two processes or more."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(99)"]
    settings = VerificationPart(kind="command", command=sleeps, timeout=0.5)
    with pytest.raises(VerificationError, match=r"gives no verdict on any of 4 responses \(timeout\)"):
        prove([pair(str(n), "x") for n in range(64)], settings, None)
