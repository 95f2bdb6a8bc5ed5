r"""Verifier `math`: mathematical expressions are equal, by math-verify.

math-verify finds the last expression of a text (in `\boxed`, in LaTeX or plain), parses it and compares by sympy. It
passes sympy's parser, which evaluates code, only digits, operators and parentheses; its own time limits rely on signals
that a large power does not let through, so that the limits here are those of the process.
"""

from __future__ import annotations

import re
from typing import Any

from iris_core.config import VerificationPart
from iris_core.verification.verdicts import Case, Judge, Verdict

DELIMITERS = ("$", r"\(", r"\[", r"\boxed", "\n")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")  # no command of LaTeX


def check(settings: VerificationPart) -> None:
    """math-verify is installed with IRIS."""


def open_judge(settings: VerificationPart) -> Judge:
    """Imports math-verify, which takes a second."""
    from math_verify import parse, verify

    def expressions(text: str) -> list[Any]:
        found: list[Any] = parse(_delimited(text), parsing_timeout=None, raise_on_error=True)
        return found

    def judge(case: Case) -> Verdict:
        assert case.reference is not None
        wanted = expressions(case.reference)
        if not wanted:
            return Verdict("undecided", "the reference has no expression")
        found = expressions(case.response)
        if not found:
            return Verdict("wrong", "no expression")
        equal = verify(wanted, found, timeout_seconds=None, raise_on_error=True)
        return Verdict("right", "equal") if equal else Verdict("wrong", "not equal")

    return judge


def _delimited(text: str) -> str:
    """`text` as LaTeX if it is an expression and nothing else, such as a capture or a reference in a column."""
    bare = text.strip() and not any(sign in text for sign in DELIMITERS) and not WORD.search(text)
    return f"${text}$" if bare else text
