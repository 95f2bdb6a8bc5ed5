"""Whether two results of queries are the same, as Spider's execution accuracy counts it.

Rows are compared as a multiset, or as a list where the reference asks for an order. Columns may be in another order and
have other names: results are the same if some order of the columns makes their rows equal. NULL equals NULL, text
equals the same text only, and numbers are equal if they agree to twelve digits, whatever their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from iris_core.sql.execution import Row

Columns = list[list[Any]]

NOTHING = (None, 0, "")  # values that tell nothing
DIGITS = 12  # sums of floats in another order agree to more; few sums have a tie there, as 12345678.25 has at 9
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
    columns, wanted = _columns(found), _columns(expected)
    candidates = _candidates(columns, wanted, ordered)
    if all(len(each) == 1 for each in candidates):
        order = tuple(index for each in candidates for index in each)
        return len(set(order)) == len(order) and _equal(columns, wanted, ordered, order)
    return _matches(columns, wanted, candidates, ordered, (), iter(range(MAX_TRIES)))


def tells_something(rows: list[Row]) -> bool:
    """Whether a result has a value other than NULL, 0 and empty text. One that has none is that of many queries."""
    return any(value not in NOTHING for row in rows for value in row)


def stands_in(rows: list[Row], texts: Iterable[str]) -> bool:
    """Whether every value of a result that tells something is one of `texts`, whatever its type, sign and case.

    1 may be missing, and alone never is one of them: COUNT(1) and others have it.
    """
    telling = {_plain(value) for row in rows for value in row if value not in NOTHING} - {"1"}
    return bool(telling) and telling <= set(map(_plain, texts))


def canonical(value: Any) -> Any:
    """`value` in the form that is compared: numbers with `DIGITS` digits, whole ones as int."""
    if isinstance(value, float):
        rounded = value if value.is_integer() else float(f"{value:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value


def _plain(value: Any) -> str:
    """The one form of values that differ in type, sign or case: "30" of "30", -30 and 30.0."""
    try:
        return str(canonical(abs(float(value))))
    except ValueError:
        return str(value).casefold()


def _columns(rows: list[Row]) -> Columns:
    return [[canonical(value) for value in column] for column in zip(*rows, strict=True)]


def _candidates(found: Columns, expected: Columns, ordered: bool) -> list[list[int]]:
    """The columns of `found` that have the values of each one of `expected`."""
    here, there = ([column if ordered else Counter(column) for column in each] for each in (found, expected))
    return [[index for index, values in enumerate(here) if values == wanted] for wanted in there]


def _matches(
    found: Columns,
    expected: Columns,
    candidates: list[list[int]],
    ordered: bool,
    order: tuple[int, ...],
    tries: Iterator[int],
) -> bool:
    """Whether `order`, columns of `found` for the first ones of `expected`, can be completed."""
    if len(order) == len(expected):
        return True
    seen: Columns = []
    for index in candidates[len(order)]:
        column = found[index]
        if index in order or column in seen:  # an equal column would not do better
            continue
        if next(tries, None) is None:
            return False
        seen.append(column)
        longer = (*order, index)
        if _equal(found, expected, ordered, longer) and _matches(found, expected, candidates, ordered, longer, tries):
            return True
    return False


def _equal(found: Columns, expected: Columns, ordered: bool, order: tuple[int, ...]) -> bool:
    """Whether the rows are equal in the first columns of `expected`."""
    rows = zip(*(found[index] for index in order), strict=True)
    wanted = zip(*expected[: len(order)], strict=True)
    return list(rows) == list(wanted) if ordered else Counter(rows) == Counter(wanted)
