"""One spelling for answers that mean the same: numbers, dates, JSON, white space and Unicode.

    normalize("1,000.0 km") == normalize("1e3km")                 # "1e3 km"
    normalize("2nd May 2024") == normalize("2024-05-02")          # "2024-05-02"
    normalize('{"b": 1.0, "a": []}') == normalize('{"a":[],"b":1}')

Nothing is computed, converted to a machine number or evaluated: a number of a million digits stays text.
Where a text has two readings, as the date 1/2/2024 or the number 1,5, it stays as it is.
"""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from typing import Any

KEPT = ("<super>", "<sub>", "<fraction>")  # 10² is not 102
SIGNS = str.maketrans({"\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2018": "'", "\u2019": "'"})
NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTHS = {name: number for number, name in enumerate(NAMES, 1)}
MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
YEAR = r"(?P<year>[0-9]{4})"
DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{YEAR}([-/.])(?P<month>[0-9]{{1,2}})\2(?P<day>[0-9]{{1,2}})",
        rf"{DAY}(?: of)?[ -]{MONTH},?[ -]{YEAR}",
        rf"{MONTH} {DAY},? {YEAR}",
    )
]
TWO_ORDERS = re.compile(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4})")
NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<currency>[$€£¥]?) ?"
    r"(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]*)(?:\.(?P<part>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{1,9}))?"
    r" ?(?P<unit>(?:[^\W\d_]|[%‰°$€£¥]).*)?"
)


def normalize(text: str) -> str:
    """`text` in the spelling that all texts with its meaning share."""
    value = _json(text)
    if value is not None:
        return value
    plain = " ".join(_unicode(text).split()).rstrip(" .")
    return _date(plain) or _number(plain) or plain


def _unicode(text: str) -> str:
    """Compatibility characters as plain ones, but for those that carry a meaning."""
    folded = (c if unicodedata.decomposition(c).startswith(KEPT) else unicodedata.normalize("NFKC", c) for c in text)
    return unicodedata.normalize("NFC", "".join(folded)).translate(SIGNS)


def _date(text: str) -> str | None:
    """The ISO date; None if `text` is no date, or could be two."""
    for pattern in DATES:
        if found := pattern.fullmatch(text):
            month = found["month"].lower()
            return _iso(found["year"], MONTHS.get(month[:3], month), found["day"])
    if found := TWO_ORDERS.fullmatch(text):
        first, _, second, year = found.groups()
        days = {_iso(year, first, second), _iso(year, second, first)} - {None}
        return days.pop() if len(days) == 1 else None
    return None


def _iso(year: str, month: str | int, day: str) -> str | None:
    try:
        return datetime.date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return None


def _number(text: str) -> str | None:
    """The number with its unit; None if `text` is not one."""
    found = NUMBER.fullmatch(text)
    if not found or not (found["whole"] or found["part"]):
        return None
    number = _decimal(found["sign"], found["whole"].replace(",", ""), found["part"] or "", found["exponent"] or "0")
    unit = " ".join(filter(None, (found["currency"], found["unit"])))
    return f"{number} {unit}" if unit else number


def _decimal(sign: str, whole: str, part: str, exponent: str) -> str:
    """The digits without zeros at either end, and the power of ten if it is not 0."""
    digits = (whole + part).lstrip("0")
    kept = digits.rstrip("0")
    power = int(exponent) - len(part) + len(digits) - len(kept)
    if not kept:
        return "0"
    return ("-" if sign == "-" else "") + kept + (f"e{power}" if power else "")


class _Number(str):
    """A number of a JSON text, as it is written there."""


def _json(text: str) -> str | None:
    """The object or array in `text` in one spelling; None if there is none."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return _written(json.loads(text, parse_int=_Number, parse_float=_Number))
    except ValueError:
        return None


def _written(value: Any) -> str:
    match value:
        case dict():
            return "{" + ",".join(f"{json.dumps(key)}:{_written(value[key])}" for key in sorted(value)) + "}"
        case list():
            return "[" + ",".join(map(_written, value)) + "]"
        case _Number():
            return _number(value) or value
        case _:
            return json.dumps(value)
