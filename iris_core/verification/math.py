r"""Verifier `math`: mathematical expressions are equal, by math-verify.

math-verify finds the last expression of a text (in `\boxed`, in LaTeX or plain), parses it and compares by sympy. It
passes sympy's parser, which evaluates code, only digits, operators and parentheses; its own time limits rely on signals
that a large power does not let through, so that the limits here are those of the process.

It knows no notation such as 1e3, drops units, and of an equation compares the last side only where the other text is
none. What is done about that here: numbers are written out; a reference such as 3 + 4 = 7 is 7; two texts that are a
number with a unit and nothing else are not equal if their units differ, and nothing is known then.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from iris_core.config import VerificationPart
from iris_core.verification.verdicts import Case, Judge, Verdict

DELIMITERS = ("$", r"\(", r"\[", r"\boxed", "\n")
WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|[A-Z][a-z](?=,? +[-+(\d]))")  # as in "So 3", but no LaTeX command
EXPONENT = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE][-+]?\d{1,2}(?!\w|\.\d)")
CONSTANTS = ("π", "pi")  # no units
PERCENTAGE = re.compile(r"[-+]?[\d.,]+ *%")
WITH_UNIT = re.compile(
    r"\$?[-+]?\d[\d.,]*(?:\s|\\[,; ])*(?:\\(?:text|mathrm)\{\s*|\\)?"
    r"(?P<unit>(?:[^\W\d_]|[%°])[^\s${}\\]*?)\}?\.?\$?\.?"
)


def check(settings: VerificationPart) -> None:
    """math-verify is installed with IRIS."""


def open_judge(settings: VerificationPart) -> Judge:
    """Imports math-verify, which takes a second."""
    from math_verify import parse, verify
    from math_verify.grader import is_equation, take_last_relation

    def expressions(text: str) -> list[Any]:
        plain = EXPONENT.sub(lambda number: f"{Decimal(number[0]):f}", text).replace(r"\%", "%")
        found: list[Any] = parse(_delimited(plain), parsing_timeout=None, raise_on_error=True)
        if len(found) == 1 and isinstance(found[0], str) and PERCENTAGE.fullmatch(found[0]):  # as from \boxed{50%}
            found = parse(f"${found[0]}$", parsing_timeout=None, raise_on_error=True)
        return found

    def value(expression: Any) -> Any:
        """The last side of an equation between numbers; an equation with variables is a reference as it is."""
        between_numbers = is_equation(expression) and not expression.free_symbols
        return take_last_relation(expression).rhs if between_numbers else expression

    def values(reference: str) -> list[Any]:
        return [value(each) for each in expressions(reference)]

    def same(wanted: list[Any], found: list[Any]) -> bool:
        return bool(verify(wanted, found, timeout_seconds=None, raise_on_error=True))

    def judge(case: Case) -> Verdict:
        assert case.reference is not None
        wanted = values(case.reference)
        if not wanted:
            return Verdict("undecided", "the reference has no expression")
        found = expressions(case.response)
        if not found:
            return Verdict("wrong", "no expression")
        equal = same(wanted, found)
        if not equal and ("%" in case.response) != ("%" in case.reference):  # on one side: 12.5% is 12.5, too
            equal = same(values(without_percent(case.reference)), expressions(without_percent(case.response)))
        if not equal:
            return Verdict("wrong", "not equal")
        units = [unit for text in (case.response, case.reference) if (unit := _unit(text))]
        if len(set(units)) > 1:
            return Verdict("undecided", f"equal but for the units: {' and '.join(units)}")
        return Verdict("right", "equal")

    return judge


def without_percent(text: str) -> str:
    """`text` without percent signs."""
    return text.replace(r"\%", "").replace("%", "")


def _delimited(text: str) -> str:
    """`text` as LaTeX if it is an expression and nothing else, such as a capture or a reference in a column."""
    bare = text.strip() and not any(sign in text for sign in DELIMITERS) and not WORD.search(text)
    return f"${text}$" if bare else text


def _unit(text: str) -> str | None:
    """The unit of a number if `text` is that and nothing else."""
    found = WITH_UNIT.fullmatch(text.strip())
    return found["unit"] if found and found["unit"] not in CONSTANTS else None
