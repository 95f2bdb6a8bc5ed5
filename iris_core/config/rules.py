"""Rules for settings: the base class of all parts, and validators that raise ValueError with the remedy."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import NoneType
from typing import Annotated, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from iris_core.common import mirrors, uris
from iris_core.common.redaction import REFUSED, WITHOUT_SECRET, carries_secret
from iris_core.common.strict import Strict

LONGEST_NAME = 200  # in file names and MLflow's databases, with what is added there
LONGEST_FILE_NAME = 255  # bytes
LONGEST_STORE = 400  # bytes; SQLite opens paths of up to 511


class Part(Strict):
    """A part of an experiment: immutable, without unknown keys, and text is never converted to a number.

    URIs with secrets are refused, and validation errors do not repeat the values.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_text_for_none(cls, value: object, info: ValidationInfo) -> object:
        optional = NoneType in get_args(cls.model_fields[str(info.field_name)].annotation)
        if optional and isinstance(value, str) and value.strip().lower() in ("", "none"):
            what = "is a word like any other" if value.strip() else "is empty"
            raise ValueError(f"{what}: to set nothing, leave the key out or write null")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_secret(cls, value: object) -> object:
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and carries_secret(text) for text in texts):
            raise PydanticCustomError("secret", REFUSED)
        return value


def is_none(value: object) -> bool:
    """Whether nothing is set. A setting of a later version is left out of keys where that is so: old keys stay."""
    return value is None


def usable_path(text: str) -> str:
    """Refuses text that is neither a path that the file system accepts nor a name on the hub."""
    if "\0" in text or not text.strip():
        raise ValueError("is no path: give a file, a folder or a name")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError("starts with ~ and names no user: write the folder out") from error
    if any(len(os.fsencode(part)) > LONGEST_FILE_NAME for part in path.parts):
        raise ValueError(f"has a part of more than {LONGEST_FILE_NAME} bytes: no file can be called so")
    return text


def store_path(text: str) -> str:
    """Refuses folders that are too long for the databases in them, or have characters that are special in addresses.

    An S3 URI must name a bucket; the rest applies to its mirror on this machine.
    """
    if mirrors.is_remote(text):
        if problem := mirrors.problem(text):
            raise ValueError(problem)
        folder = mirrors.local_root(text)
    else:
        folder = Path(usable_path(text)).expanduser().absolute()
    if found := [sign for sign in "?%" if sign in str(folder)]:
        raise ValueError(
            f"has {' and '.join(found)} in its path ({folder}), which MLflow takes for a part of an address: choose "
            "another folder"
        )
    length = len(os.fsencode(folder))
    if length > LONGEST_STORE:
        raise ValueError(
            f"is a path of {length} bytes, and the databases in a store take {LONGEST_STORE}: choose a shorter one"
        )
    return text


def model_name(name: str) -> str:
    """Refuses names that MLflow's registry does not accept."""
    if re.search(r"[/:\"'\x00-\x1f\x7f]", name) or name.strip() in (".", ".."):
        raise ValueError("MLflow takes no name with /, :, quotes or control characters, nor . and ..: rename it")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"is longer than {LONGEST_NAME} characters: shorten it")
    return name


def tracking_uri(uri: str) -> str:
    """Refuses URIs where MLflow cannot keep runs and model versions."""
    if problem := uris.problem(uri):
        raise ValueError(problem)
    return uri


def answer_pattern(pattern: str) -> str:
    """Refuses what is not a regular expression with one group, or matches the empty text."""
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression ({error}): fix it, or leave it out") from error
    if compiled.groups != 1:
        raise ValueError(
            f"has {compiled.groups} groups and needs one, the answer: write (…) around it, and (?:…) for other groups"
        )
    if compiled.search(""):
        raise ValueError(
            "fits the empty text, and so the end of every response: any two answers would be equal; ask for one "
            "character at least, as in (.+)"
        )
    return pattern


# Prefect checks a flow run's parameters against their JSON schema before it stores them
Address = Annotated[str, WithJsonSchema({"type": "string", "pattern": WITHOUT_SECRET})]
PathText = Annotated[Address, AfterValidator(usable_path)]
StorePath = Annotated[Address, AfterValidator(store_path)]
ModelName = Annotated[str, AfterValidator(model_name)]
TrackingUri = Annotated[Address, AfterValidator(tracking_uri)]
AnswerPattern = Annotated[str, AfterValidator(answer_pattern)]
