"""Reads back what a manifest records: a stage's metrics and its spec, as objects of their classes.

A manifest may be older or newer than this program. Fields that are unknown here are ignored. Whatever else does not
fit is named in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from iris_core.common.errors import StoreError
from iris_core.store.folders import MANIFEST

M = TypeVar("M", bound=BaseModel)


class Recorded(Protocol):
    """What has metrics: a manifest, or its short form that passes between tasks."""

    @property
    def folder(self) -> Path:
        """The stage's folder."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the stage measured, as JSON."""


class Metrics(BaseModel):
    """What a stage measured: numbers and small values worth showing. Each stage has a class of its own.

    Attributes:
        warnings: what a user should know, one line each.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    warnings: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, recorded: Recorded) -> Self:
        """The metrics that `recorded` holds.

        Raises:
            StoreError: they do not fit this class.
        """
        return read_recorded(cls, recorded.metrics, recorded.folder, "metrics")


def read_recorded(kind: type[M], content: Mapping[str, Any], folder: Path, part: str) -> M:
    """`content` as an object of `kind`.

    Args:
        kind: the class.
        content: JSON from the manifest in `folder`.
        folder: the stage's folder, for the message.
        part: which part of the manifest this is, for the message.

    Raises:
        StoreError: a required field is missing, or a value has another type.
    """
    try:
        return kind.model_validate(content, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (part, *first["loc"])))
        raise StoreError(
            f"{folder / MANIFEST}: {where}: {first['msg']}: it is damaged, or of another version of IRIS: "
            f"delete {folder} and run again"
        ) from error


@lru_cache
def lenient(kind: type[M]) -> type[M]:
    """`kind` with None for required fields that are missing: an older version of it did not have them."""
    required: dict[str, Any] = {
        name: field.annotation for name, field in kind.model_fields.items() if field.is_required()
    }
    optional: dict[str, Any] = {name: (annotation | None, None) for name, annotation in required.items()}
    return create_model(kind.__name__, __base__=kind, **optional)
