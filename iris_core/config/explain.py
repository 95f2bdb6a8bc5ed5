"""Explains wrong settings: one line for each, with its place, field, value and remedy."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pydantic
from pydantic import BaseModel

from iris_core.common.redaction import redact

Place = Callable[[tuple[Any, ...]], str]
SECRET = ("tracking",)  # parts with values that may hold a password: messages never repeat them
UNION_MEMBER = re.compile(
    r"a path|a number|a list|str|int|float|bool|(list|dict)\[.*\]"
)  # parts of a location that pydantic adds for unions
YES = ("yes", "on", "y", "t", "1", "true")
NO = ("no", "off", "n", "f", "0", "false")

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 120


def explain(error: pydantic.ValidationError, root: type[BaseModel], place: Place) -> str:
    """What is wrong in the settings of a `root`, one line for each field."""
    return "\n".join(
        f"{place(item['loc'])}: {_line(item, root).removeprefix(': ')}"  # no field where the whole is wrong
        for item in error.errors()
        if item["type"] != "default_factory_not_called"  # a consequence of another error
    )


def _line(item: Mapping[str, Any], root: type[BaseModel]) -> str:
    location, kind = item["loc"], item["type"]
    field = ".".join(str(part) for part in location if not UNION_MEMBER.fullmatch(str(part)))
    if kind == "extra_forbidden":
        return f"{field}: unknown key; known here: {', '.join(_fields(location, root))}{_dotted(location)}"
    if kind == "missing":
        return f"{field}: missing; add it"
    repeated = location[:1] != SECRET and kind != "secret"
    given = f" (got {shown(item['input'])})" if repeated else ""
    if kind == "model_type":
        known = ", ".join(_fields((*location, ""), root))
        return f"{field}: a mapping with the keys {known} is needed{given}"
    if kind == "value_error" and isinstance(item["input"], dict | BaseModel):
        given = ""  # the rule is about several fields, and its message names them
    remedy = _remedy(kind, item["input"])
    return f"{field}: {item['msg'].removeprefix('Value error, ')}{given}{remedy and f': {remedy}'}"


def shown(value: object) -> str:
    """`value` as an error shows it: short and without credentials, which are removed before it is shortened."""
    return redact(_brief.repr(_redacted(value)))


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: _redacted(item) for name, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list) else value


def _dotted(location: tuple[Any, ...]) -> str:
    first, dot, rest = str(location[-1]).partition(".")
    if not dot:
        return ""
    return f"; dotted keys are for --set: in a recipe write {first}: {{{rest.replace('.', ': {', 1)}: …}}"


def _remedy(kind: str, value: object) -> str:
    """What to write instead of `value`, if its type is wrong."""
    if kind not in ("int_type", "float_type", "bool_type", "string_type"):
        return ""
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return "leave the key out for the default"
    if kind == "string_type":
        return "put it in quotes" if isinstance(value, (int, float)) else ""
    if kind == "bool_type":
        return _boolean(str(value).lower())
    if isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return _number(value) if isinstance(value, str) else ""


def _boolean(text: str) -> str:
    if text in YES:
        return "write true"
    return "write false" if text in NO else "write true or false"


def _number(text: str) -> str:
    """The number that `text` was probably meant to be. YAML 1.1 and 1.2 read some numbers differently."""
    plain = text.replace("_", "").replace(",", "").replace(" ", "")
    if re.fullmatch(r"[-+]?0+[0-9]+", plain):
        octal = f", or {int(plain, 8)} if it is octal" if not set(plain) & set("89") else ""
        return f"write {int(plain)}{octal}"
    if re.fullmatch(r"0o[0-7]+|0b[01]+", plain):
        return f"write {int(plain, 0)}"
    if re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", plain):
        return f"write {plain} without quotes"
    return "write a number in digits"


def _fields(location: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    """The keys that are known at `location`, beside its last part."""
    part = root
    for name in location[:-1]:  # list indices and union members lead to no other part
        if name in part.model_fields:
            part = _model_in(part.model_fields[name].annotation) or part
    return list(part.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The part in the annotation of a field: alone, in a list or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
