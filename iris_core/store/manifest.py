"""The manifest that completes a stage's folder: written last, sealed with its own digest."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from iris_core.common.errors import StoreError
from iris_core.common.files import read_sealed
from iris_core.common.strict import Strict
from iris_core.store.artifacts import Artifact
from iris_core.store.folders import MANIFEST
from iris_core.store.recorded import Metrics


class Output(Strict):
    """A named file or folder inside a stage's folder."""

    path: str
    digest: str


class Manifest(Strict):
    """What a finished stage produced. `folder`, where it was read from, and `reused` are not stored.

    Attributes:
        files: size and SHA-256 of each file, by name relative to the folder.
        outputs: the parts that later stages take.
        metrics: what the stage measured, as JSON; `iris_core.pipeline.metrics` has its classes.
        seconds: wall time of the run that completed it.
        reused: whether an earlier run has completed it.
    """

    stage: str
    key: str
    spec: dict[str, Any]
    files: dict[str, tuple[int, str]]
    outputs: dict[str, Output]
    metrics: dict[str, Any]
    started: datetime.datetime
    seconds: float
    folder: Path = Field(default=Path(), exclude=True)
    reused: bool = Field(default=False, exclude=True)

    def artifact(self, name: str) -> Artifact:
        """The output `name`, as input of another stage."""
        output = self.outputs[name]
        return Artifact(path=self.folder / output.path, digest=output.digest)

    def as_artifact(self) -> Artifact:
        """The manifest's own file, as input of another stage; `named_manifest` reads it."""
        return Artifact.of(self.folder / MANIFEST)


class Outcome(Strict):
    """What the function of a stage returns: its outputs by name, and its metrics."""

    outputs: dict[str, Path]
    metrics: Metrics = Field(default_factory=Metrics)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a stage's folder; None if it is missing or damaged."""
    content = read_sealed(folder / MANIFEST)
    try:
        return None if content is None else Manifest(**content, folder=folder)
    except ValueError:
        return None


def require_manifest(folder: Path) -> Manifest:
    """The manifest in the folder of a complete stage.

    Raises:
        StoreError: it is missing.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"the stage output in {folder} is gone: run again to make it")
    return manifest


def named_manifest(file: Artifact) -> Manifest:
    """The manifest that the spec of another stage names.

    Raises:
        StoreError: it is missing or has changed.
    """
    return require_manifest(file.intact().parent)
