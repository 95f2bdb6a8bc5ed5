"""YAML by the core schema of 1.2: what is read as what, what is refused, and that everything written is read back."""

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from iris_core.config.yaml12 import YamlError, plain_scalar, read, write

pytestmark = pytest.mark.unit

AMBIGUOUS = [
    "none",
    "None",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "064",
    "0o17",
    "0b101",
    "1_000",
    "1:30",
    "1e3",
    "~",
    "",
    "null",
    "true",
    "2024-01-31",
    "12e4567",
    ".inf",
    "0x1F",
    "<<",
    "=",
    "- a",
    "a: b",
    "a #b",
    "#a",
    "'",
    '"',
    "\n",
    "a\n\nb\n",
    " a ",
    "\ta",
    "ÄÖ 漢字 🙂",
    "\u2028",
    "\x85",
    "%a",
    "@a",
    "`a",
    "!a",
    "&a",
    "*a",
    "?",
    "|",
    ">",
    "-1",
    "+1",
    ".5",
    "1.",
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        ("64", 64),
        ("-3", -3),
        ("+3", 3),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        *(
            (same, same)
            for same in (
                "none",
                "None",
                "yes",
                "No",
                "on",
                "off",
                "y",
                "064",
                "08",
                "0o17",
                "0b101",
                "1_000",
                "1:30",
                "2024-01-31",
                "2024-01-31 10:00:00",
                "nul",
                "0x",
                "1e",
                "e3",
                "9" * 5000,
            )
        ),
    ],
)
def test_scalars(text: str, value: object) -> None:
    for found in (read(text).value, plain_scalar(text)):
        assert found == value
        assert type(found) is type(value)


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(read(".nan").value)


@pytest.mark.parametrize("quote", ["'064'", '"null"', "!!str 5"])
def test_quotes_make_text(quote: str) -> None:
    assert isinstance(read(quote).value, str)


def test_comments() -> None:
    text = "a: # of a\n  b: text # of b\n  c: 1 #of c\n  d: null #of d\n  e: 'Problem #3' #of e\n  f: C#\n# end #3"
    inner = {"b": "text", "c": 1, "d": None, "e": "Problem #3", "f": "C#"}
    assert read(text).value == {"a": inner}


def test_anchors_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], y: 3}\nd: {y: 4, <<: *b}\n'<<': 5"
    value = read(text).value
    assert value["c"] == {"x": 1, "y": 3, "z": 2}
    assert value["d"] == {"y": 4, "z": 2}
    assert value["<<"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is there twice, first in line 1"),
        ("a:\n  b: 1\n  c: {d: 1, d: 1}", "line 3: 'd' is there twice, first in line 3"),
        ("a:\n  b: 1\n'a': 2", "line 3: 'a' is there twice, first in line 1"),
        ("- {a: 1}\n- {a: 1,\n   a: 2}", "line 3: 'a' is there twice, first in line 2"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "line 2: '<<' is there twice"),
        ("a: [1", r"line 1: not YAML \(while parsing a flow sequence, expected ',' or '\]'"),
        ("a: 1\n\tb: 2", "line 2: not YAML"),
        ("a: 1\n---\na: 2", "line 2: not YAML .*another document"),
        ("a: b\n1: c", "line 2: a key is a word"),
        ("? [a]\n: c", "line 1: a key is a word"),
        ("a: !!python/name:os.system x", "line 1: the tag !!python/name:os.system does not fit"),
        ("a: !!int abc", "line 1: the tag !!int does not fit"),
        ("a: !!bool yes", "line 1: the tag !!bool does not fit"),
        ("a: &a\n  b: *a", "line 1: an anchor is inside itself"),
        ("a: *b", "line 1: not YAML .*undefined alias"),
        ("b: 1\na: #### (.+)", "line 2: nothing is before the #, which begins a comment: put the value in quotes"),
        ("a: # nothing", "line 1: nothing is before the #"),
        (
            "a: Problem #3\nb: 1",
            "line 1: the # begins a comment, so the value is 'Problem': put the whole value in",
        ),
        ("- [a, b #3\n  ]", "line 1: the # begins a comment, so the value is 'b'"),
        ("a: {<<: 3}", "line 1: `<<` takes a mapping"),
        ("a: \x07", "not YAML .*special characters are not allowed"),
        ("[" * 3000, "nested too deep"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_aliases_of_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    assert len(read("\n".join(lines)).value["a39"]) == 9


def test_lines_of_places() -> None:
    document = read("a: 1\nb:\n  c: [x,\n    y]\nd: &d {e: 5}\nf:\n  <<: *d")
    assert document.line(("a",)) == 1
    assert document.line(("b", "c")) == 3
    assert document.line(("b", "c", 1, "more")) == 4
    assert document.line(("b", "missing")) == 2
    assert document.line(("f", "e")) == 5
    assert document.line(("nowhere",)) is None


TEXTS = st.sampled_from(AMBIGUOUS) | st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
@example(AMBIGUOUS)
def test_what_is_written_is_read_back(value: object) -> None:
    assert read(write(value)).value == value


@given(TEXTS)
@example("1e3")
def test_readers_of_yaml_1_1_read_the_same_text(text: str) -> None:
    assert yaml.safe_load(write([text, True, None, 1, 1e-05])) == [text, True, None, 1, 1e-05]
