"""One spelling for numbers, dates, JSON, white space and Unicode."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from iris_core.verification.normalize import normalize

pytestmark = pytest.mark.unit

FEW = settings(max_examples=60)


@pytest.mark.parametrize(
    ("texts", "spelling"),
    [
        (["1000", "1,000", "1000.0", "1e3", "1.0E+3", "+1000", " 1000. ", "０1000", "1000e-0"], "1e3"),
        (["-0", "0", "0.000", "0e7", ".0"], "0"),
        (["-2.50", "\u22122.5", "-25e-1"], "-25e-1"),
        (["1,234,567.8"], "12345678e-1"),
        (["5 km", "5km", "5.0\u00a0km"], "5 km"),
        (["$5", "$ 5.00", "5$"], "5 $"),
        (["50%", "50 %"], "5e1 %"),
        (["2024-05-02", "2024/5/2", "2 May 2024", "May 2nd, 2024", "2nd of may 2024", "02 MAY, 2024"], "2024-05-02"),
        (["13/2/2024", "2/13/2024", "13.02.2024", "13 Feb. 2024"], "2024-02-13"),
        (["3/3/2024"], "2024-03-03"),
        (["1st May 2024"], "2024-05-01"),
        (["3rd May 2024"], "2024-05-03"),
        (["4th May 2024"], "2024-05-04"),
        (['{"b": 1.0, "a": [true, 1e2]}', '{"a":[true,100],"b":1}'], '{"a":[true,1e2],"b":1}'),
        (["  a\t b \n", "a b.", "ａ b"], "a b"),
        (["it\u2019s"], "it's"),
        (["caf\u00e9", "cafe\u0301"], "caf\u00e9"),
        (["", " . "], ""),
    ],
)
def test_what_means_the_same_is_spelled_the_same(texts: list[str], spelling: str) -> None:
    assert [normalize(text) for text in texts] == [spelling] * len(texts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 km", "5 m"),
        ("5", "5 km"),
        ("10²", "102"),
        ("10₂", "102"),
        ("2 May 2024 or 3 May 2024", "2024-05-02"),
        ("2024-05-02 or 2025-01-01", "2024-05-02"),
        ("13/2/2024 or 14/2/2024", "13/2/2024"),
        ("½", "1/2"),
        ("1,5", "15"),
        ("1,5", "1.5"),
        ("1/2/2024", "2/1/2024"),
        ("1/2/2024", "2024-01-02"),
        ("2024-13-40", "2024-01-02"),
        ("30 Feb 2024", "2024-03-01"),
        ('{"a": 1}', '{"a": "1"}'),
        ("[1, 2]", "[2, 1]"),
        ("[true]", "[1]"),
        ("[null]", "[]"),
        ("1 2", "12"),
        ("5 + 3", "5"),
        ("A", "a"),
        ("0,500", "500"),
        ("00,123", "123"),
    ],
)
def test_what_differs_stays_apart(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)


@pytest.mark.parametrize(
    "text", ["1e999999999999999", "9" * 100_000, "-" * 10_000, "1," * 10_000, "\0\ud800", "e5", "$"]
)
def test_nothing_is_computed(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@FEW
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.sampled_from(["", " km", " %"]))
def test_a_number_has_one_spelling_whatever_its_form(number: Decimal, unit: str) -> None:
    forms = [f"{number:f}", f"{number:,f}", f"{number:e}", f"{number:f}000"]
    assert {normalize(form + unit) for form in forms} == {normalize(f"{number}{unit}")}


@FEW
@given(st.decimals(-1000, 1000, places=2), st.decimals(-1000, 1000, places=2))
def test_two_spellings_are_equal_exactly_if_the_values_are(one: Decimal, other: Decimal) -> None:
    assert (normalize(str(one)) == normalize(str(other))) == (one == other)
    assert Decimal(normalize(str(one))) == one


@FEW
@given(st.dates(min_value=datetime.date(1000, 1, 1)))
def test_a_date_in_words_is_its_iso_form(date: datetime.date) -> None:
    months = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October"]
    month = [*months, "November", "December"][date.month - 1]
    for text in (f"{date.day} {month} {date.year}", f"{month[:3]}. {date.day}, {date.year}"):
        assert normalize(text) == date.isoformat()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@FEW
@given(st.lists(VALUES, max_size=3), st.integers(0, 3))
def test_json_is_compared_by_value(value: list[object], indent: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    assert normalize(text) == normalize(json.dumps(value))
    assert normalize(normalize(text)) == normalize(text)


@FEW
@given(st.text(alphabet="0123456789.,-+e km$%/ \t²½ａé", max_size=12))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)
