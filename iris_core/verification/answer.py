"""Verifier `answer`: the captures of `data.answer_pattern` are equal once both are normalized."""

from __future__ import annotations

from iris_core.config import VerificationPart
from iris_core.verification.normalize import normalize
from iris_core.verification.verdicts import Case, Judge, Verdict


def check(settings: VerificationPart) -> None:
    """It needs nothing besides the pattern, which the experiment's settings have."""


def open_judge(settings: VerificationPart) -> Judge:
    """Compares answers."""
    return judge


def judge(case: Case) -> Verdict:
    """Right if the answer is that of the reference."""
    assert case.reference is not None
    found, wanted = normalize(case.response), normalize(case.reference)
    return Verdict("right", "equal") if found == wanted else Verdict("wrong", f"{found} is not {wanted}")
