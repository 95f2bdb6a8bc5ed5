"""Which results of queries are the same."""

from __future__ import annotations

import random

import pytest

from iris_core.sql.results import same_result, stands_in, tells_something

pytestmark = pytest.mark.unit

COUNTS = ((3, 1, 1, 2), (2, 2, 2, 1))


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ([(1,), (2,)], [(2,), (1,)], True),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False),  # a multiset, not a set
        ([(1,)], [(1,), (1,)], False),
        ([], [], True),
        ([], [(1,)], False),
        ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], True),  # another order of the columns
        ([(1, 2), (2, 1)], [(1, 2), (2, 1)], True),
        ([(1, 2), (3, 4)], [(1, 4), (3, 2)], False),  # equal columns, other rows
        ([(1, 1, 2)], [(1, 2, 2)], False),
        ([(1, 2)], [(1,)], False),
        ([(None,)], [(None,)], True),
        ([(None,)], [(0,)], False),
        ([("",)], [(None,)], False),
        ([(3,)], [(3.0,)], True),
        ([(0.1 + 0.2,)], [(0.3,)], True),
        ([(1 / 3,)], [(0.333,)], False),
        ([(12345678.25,)], [(12345678.250000002,)], True),  # one more bit: a sum in another order
        ([(1.00000000001,)], [(1.0,)], False),
        ([(1.0000000000001,)], [(1,)], True),
        ([(0.3,), (0.1 + 0.2,)], [(0.1 + 0.2,), (0.3,)], True),
        ([(1234567891,)], [(1234567891.0,)], True),
        ([(1234567891,)], [(1234567892,)], False),
        ([(1234567890123.0,)], [(1234567890123,)], True),  # whole ones in all digits
        ([(1234567890123.0,)], [(1234567890124.0,)], False),
        ([(1.000000000001,)], [(1.0,)], True),
        ([("3",)], [(3,)], False),
        ([("Ann",)], [("ann",)], False),
        ([(b"A",)], [(b"A",)], True),
        ([(float("inf"),)], [(float("inf"),)], True),
        ([(1, 3), (2, 3)], [(1, 1), (2, 2)], False),  # one column is not two
        ([(1, 1), (2, 2)], [(1, 1), (2, 2)], True),
        ([(1, 2), (2, 1)], [(1, 1), (2, 2)], False),  # the same values in other rows
    ],
)
def test_without_order(found: list[tuple[object, ...]], expected: list[tuple[object, ...]], same: bool) -> None:
    assert same_result(found, expected, ordered=False) is same


def test_how_often_a_row_occurs_counts() -> None:
    """Each column alone has the same values."""
    kinds = [(1, 1), (1, 2), (2, 1), (2, 2)]
    found, expected = ([kind for kind, n in zip(kinds, ns, strict=True) for _ in range(n)] for ns in COUNTS)
    assert not same_result(found, expected, ordered=False)


def test_columns_with_the_same_values_are_told_apart() -> None:
    rng = random.Random(0)
    columns = [rng.sample(range(20), 20) for _ in range(12)]
    found, expected = (list(zip(*each, strict=True)) for each in (columns[::-1], columns))
    assert same_result(found, expected, ordered=False)


def test_what_tells_something() -> None:
    assert not tells_something([("", None, 0), (0.0, "", None)])
    assert tells_something([("", None, 0), (0, "a", None)])


def test_values_stand_in_texts_whatever_their_type_and_sign() -> None:
    rows = [(30, "30", -30.0, "030", None), (2.5, "2.50", 0.1 + 0.2, "Tom", 0), (b"x", "nan", 1e400, 2**62, "")]
    texts = ["30.0", "2.5", ".3", "Tom", "b'x'", "nan", "inf", str(2**62)]
    assert stands_in(rows, texts)
    for text in texts:
        assert not stands_in(rows, set(texts) - {text}), text
    assert stands_in([("TOM", 1)], ["tom"])
    assert not stands_in([(1,), (0,)], ["1"])


def test_order_counts_where_it_is_asked_for() -> None:
    assert not same_result([(1,), (2,)], [(2,), (1,)], ordered=True)
    assert same_result([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], ordered=True)


def test_many_columns_in_another_order_are_found() -> None:
    rng = random.Random(0)
    rows = [tuple(rng.randrange(3) for _ in range(30)) for _ in range(40)]
    order = rng.sample(range(30), 30)
    shuffled = [tuple(row[index] for index in order) for row in rng.sample(rows, 40)]
    assert same_result(shuffled, rows, ordered=False)
    first = shuffled[0]
    other = [(*first[:-1], first[-1] + 1), *shuffled[1:]]
    assert not same_result(other, rows, ordered=False)
