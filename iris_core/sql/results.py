"""Whether two results of queries are the same, as Spider's execution accuracy counts it.

Rows are compared as a multiset, or as a list where the reference asks for an order. Columns may be in another order and
have other names: results are the same if some order of the columns makes their rows equal. NULL equals NULL, text equals
the same text only, and numbers are equal if they agree to nine digits, whatever their types.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from iris_core.sql.execution import Row

DIGITS = 9
MAX_TRIES = 10_000  # orders of columns; only results with many equal values need more than their number of columns


def same_result(found: list[Row], expected: list[Row], *, ordered: bool) -> bool:
    """Whether two results are the same.

    Args:
        found: rows of the query in question.
        expected: rows of the reference.
        ordered: whether the order of the rows counts.
    """
    if len(found) != len(expected):
        return False
    if not expected:
        return True
    if len(found[0]) != len(expected[0]):
        return False
    return _Match(_columns(found), _columns(expected), ordered).complete()


def canonical(value: Any) -> Any:
    """`value` in the form that is compared: numbers with `DIGITS` digits, whole ones as int."""
    if isinstance(value, float):
        rounded = value if value.is_integer() else float(f"{value:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value


def _columns(rows: list[Row]) -> list[list[Any]]:
    return [[canonical(value) for value in column] for column in zip(*rows, strict=True)]


class _Match:
    """Searches the order of the columns of `found` that makes its rows those of `expected`, one column at a time."""

    def __init__(self, found: list[list[Any]], expected: list[list[Any]], ordered: bool):
        self.found, self.expected, self.ordered = found, expected, ordered
        self.tries = 0

    def complete(self, order: tuple[int, ...] = ()) -> bool:
        """Whether `order`, columns for the first ones of `expected`, can be completed."""
        if len(order) == len(self.expected):
            return True
        tried: list[list[Any]] = []
        for index, column in enumerate(self.found):
            if index in order or column in tried or (self.tries := self.tries + 1) > MAX_TRIES:
                continue
            tried.append(column)  # an equal column would not do better
            longer = (*order, index)
            if self._equal(longer) and self.complete(longer):
                return True
        return False

    def _equal(self, order: tuple[int, ...]) -> bool:
        found = zip(*(self.found[index] for index in order), strict=True)
        expected = zip(*self.expected[: len(order)], strict=True)
        return list(found) == list(expected) if self.ordered else Counter(found) == Counter(expected)
