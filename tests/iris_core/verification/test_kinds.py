"""Each kind of verifier by tables of values, through its process."""

from __future__ import annotations

import json

import pytest

from iris_core.common.errors import ConfigError
from iris_core.config import VerificationPart
from iris_core.verification.kinds import check

pytestmark = pytest.mark.unit

ANSWERS = [
    ("So.\nAnswer: 1,000", "Answer: 1000.0", "right", "equal"),
    ("Answer: 3\nAnswer: 4", "4", "right", "equal"),
    ("Answer: 5 km", "Answer: 5 m", "wrong", "5 km is not 5 m"),
    ("5", "5", "wrong", "no answer"),
    ("Answer: 5", None, "undecided", "no reference"),
    ("Answer: 2 May 2024", "2024-05-02", "right", "equal"),
]

EXPRESSIONS = [
    (r"The answer is $\frac{1}{2}$.", "0.5", "right", "equal"),
    (r"so \boxed{x^2+1}", "1+x^2", "right", "equal"),
    ("x^2+1", "x^3+1", "wrong", "not equal"),
    (r"\sqrt{8}", r"2\sqrt{2}", "right", "equal"),
    ("It is 42 apples.", "42", "right", "equal"),
    ("1,234", "1234", "right", "equal"),
    ("x=5", "5", "right", "equal"),
    ("5", "x=5", "right", "equal"),
    ("So 3+4=7", "7", "right", "equal"),
    ("7", "So 3+4=7", "right", "equal"),
    ("7", "Thus 3 + 4 = 7.", "right", "equal"),
    ("7", "x+3=7", "wrong", "not equal"),
    ("3+4=8", "3+4=7", "wrong", "not equal"),
    ("0=0", "3+4=7", "wrong", "not equal"),
    ("x=7", "3+4=7", "right", "equal"),
    ("1e3", "1000", "right", "equal"),
    ("-1.5e-3", "-0.0015", "right", "equal"),
    ("It is 1e3 apples.", "1", "wrong", "not equal"),
    ("5 km", "5 m", "undecided", "equal but for the units: km and m"),
    (r"$5\,\mathrm{km}$", "5 m.", "undecided", "equal but for the units: km and m"),
    ("50%", "50 km", "undecided", "equal but for the units: % and km"),
    ("5km.", r"$5\text{ km}$", "right", "equal"),
    ("5 km", "5", "right", "equal"),
    ("50%", "0.5", "right", "equal"),
    (r"\boxed{50\%}", "0.5", "right", "equal"),
    (r"\boxed{50\%}", r"\boxed{50}", "right", "equal"),
    (r"$50\%$", "50", "right", "equal"),
    (r"$50\%$", "0.5", "right", "equal"),
    (r"$50\%$", "0.6", "wrong", "not equal"),
    (r"$12.5\%$", "12.5", "right", "equal"),
    (r"\boxed{12.5\%}", "0.125", "right", "equal"),
    ("12.5", r"The share is 12.5\% of all.", "right", "equal"),
    ("50%", "0.5%", "wrong", "not equal"),
    (r"2\pi", "2π", "right", "equal"),
    ("5 x", "5 y", "wrong", "not equal"),
    ("No idea.", "5", "wrong", "no expression"),
    ("5", "No idea.", "undecided", "the reference has no expression"),
    ("5", None, "undecided", "no reference"),
]

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}, "far": {"$ref": "http://127.0.0.1:9/far.json"}},
    "required": ["n"],
}
DOCUMENTS = [
    ('{"n": 3}', "right", "valid"),
    (' {"n": 3, "m": []}\n', "right", "valid"),
    ('{"n": 30}', "wrong", "$.n: 30 is greater than the maximum of 9"),
    ("{}", "wrong", "$: 'n' is a required property"),
    ("{'n': 3}", "wrong", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ('{"n": NaN}', "wrong", "not JSON: NaN is no value of JSON"),
]


def test_answers(judge) -> None:
    found = judge("answer", [case[:2] for case in ANSWERS], r"Answer: (.+)")
    assert [(each.verdict, each.reason) for each in found] == [case[2:] for case in ANSWERS]


def test_mathematics(judge) -> None:
    found = judge("math", [case[:2] for case in EXPRESSIONS])
    assert [(each.verdict, each.reason) for each in found] == [case[2:] for case in EXPRESSIONS]


def test_mathematics_in_a_capture(judge) -> None:
    cases = [(r"5 of 7, so Answer: \frac{1}{2}", "0.5"), ("Answer: 5, or 7", "7"), ("0.5", "0.5")]
    found = judge("math", cases, r"Answer: ([^,]+)")
    assert [each.verdict for each in found] == ["right", "wrong", "wrong"]


def test_documents(judge, tmp_path) -> None:
    """The schema alone decides, whatever the reference is; a reference to another address is not followed."""
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    found = judge("json_schema", [(text, "{}") for text, *_ in DOCUMENTS], schema_path=str(path))
    assert [(each.verdict, each.reason) for each in found] == [case[1:] for case in DOCUMENTS]
    (far,) = judge("json_schema", [('{"n": 1, "far": 1}', None)], schema_path=str(path))
    assert far.verdict == "undecided"
    assert "Unresolvable" in far.reason
    (fenced,) = judge("json_schema", [('```json\n{"n": 1}\n```', None)], "```json\n([^`]+)```", schema_path=str(path))
    assert fenced.verdict == "right"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^verification.schema_path: \S+/schema.json cannot be read \(.*No such file.*\): give a JSON Schema$"),
        ("{", r"^verification.schema_path: \S+/schema.json is no JSON Schema \(Expecting property name.*\): fix it$"),
        ("5", r"is no JSON Schema \(.+\): fix it$"),
        ('{"$schema": []}', r"is no JSON Schema \(.+\): fix it$"),
        ('{"type": "integr"}', r"is no JSON Schema \('integr' is not valid under any of the given schemas\): fix it$"),
    ],
)
def test_a_bad_schema_is_named(tmp_path, content, message) -> None:
    path = tmp_path / "schema.json"
    if content:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        check(VerificationPart(kind="json_schema", schema_path=str(path)))


def test_a_missing_program_is_named() -> None:
    message = "^verification.command: there is no program 'no-such-program': install it, or give its path$"
    with pytest.raises(ConfigError, match=message):
        check(VerificationPart(kind="command", command=["no-such-program", "-x"]))
    check(VerificationPart(kind="command", command=["sh"]))
    check(VerificationPart())
