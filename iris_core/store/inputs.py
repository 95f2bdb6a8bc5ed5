"""The inputs of a stage on the machine where it runs: a spec names them by the paths of the machine that wrote it.

spec = localized(spec)                      # artifacts in a mirror have the path of this machine's
fetch_inputs(spec)                          # and are fetched from S3 where they are missing
check_inputs(artifacts(spec), patience)     # the same with their digests, where nothing else compares these
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from iris_core.common import mirrors
from iris_core.common.errors import StoreError
from iris_core.common.outages import wait_out
from iris_core.store import copies
from iris_core.store.artifacts import Artifact
from iris_core.store.spec import Spec

S = TypeVar("S", bound=Spec)


def localized(spec: S) -> S:
    """`spec` with the paths that its artifacts have in this machine's mirrors; its key is the same."""
    if all(mirrors.here(artifact.path) == artifact.path for artifact in artifacts(spec)):
        return spec
    return type(spec).model_validate(_moved(spec.model_dump()))


def fetch_inputs(spec: Spec) -> None:
    """Fetches what `spec` names from S3, unless it is here. The stage itself checks the digests of what it reads.

    Raises:
        StoreError: an input is neither here nor in S3.
        OutageError: S3 did not answer for as long as the patience of `spec` lasts.
    """
    for artifact in artifacts(spec):
        if not (copies.seems_here(artifact.path) or wait_out(spec.execution.patience, artifact.holds)):
            raise StoreError(
                f"{artifact.path} is not on {socket.gethostname()}, nor in an S3 store: put it there, at the same path "
                "on every machine, or run the loop again if a stage wrote it"
            )


def check_inputs(inputs: Iterable[Artifact], patience: float) -> None:
    """Makes sure that this machine has `inputs` with the content of their digests, from S3 if need be.

    Args:
        inputs: with the paths of any machine.
        patience: seconds for which an outage of S3 is waited out.

    Raises:
        StoreError: one is missing or has changed, and S3 does not have it.
        OutageError: S3 did not answer.
    """
    for artifact in inputs:
        here = artifact.model_copy(update={"path": mirrors.here(artifact.path)})
        if not wait_out(patience, here.holds):
            raise StoreError(
                f"{here.path} is missing on {socket.gethostname()}, or is not what the run's machine has there: put it "
                "there, at the same path on every machine"
            )


def artifacts(value: Any) -> Iterator[Artifact]:
    """Every artifact in a spec, at any depth."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, BaseModel):
        yield from artifacts([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, dict):
        yield from artifacts(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from artifacts(item)


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"path", "digest"}:
            return {**value, "path": mirrors.here(value["path"])}
        return {name: _moved(item) for name, item in value.items()}
    return [_moved(item) for item in value] if isinstance(value, list) else value
