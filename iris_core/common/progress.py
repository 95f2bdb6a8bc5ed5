"""Progress of a stage: JSON lines to its parent process, or a log line every few seconds when run by hand.

The parent passes the path of a pipe in `IRIS_PROGRESS`. Each line is one object:
`{"event": "progress", "stage": "train", "done": 3, "total": 40, "loss": 0.61}`, or
`{"event": "notice", "message": "..."}` for what the stage waits for, or
`{"event": "error", "kind": "DataError", "message": "...", "exit_code": 2}`, or
`{"event": "item", "name": "shard-00003.parquet"}` from a worker to its stage.

Of several ranks, rank 0 reports the progress; each of them reports its errors.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

VARIABLE = "IRIS_PROGRESS"
LOG_EVERY_S = 5.0

log = logging.getLogger(__name__)


class Advance(BaseModel):
    """A stage has done `done` of `total` steps. Other fields are values to show, such as the loss."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    event: Literal["progress"] = "progress"
    stage: str
    done: int
    total: int

    @property
    def values(self) -> dict[str, Any]:
        """The values to show, by name."""
        return self.model_extra or {}


class Notice(BaseModel):
    """What a stage waits for."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    event: Literal["notice"] = "notice"
    message: str


class Failure(BaseModel):
    """The error that ends a stage: the name of its class, and its message."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    event: Literal["error"] = "error"
    kind: str
    message: str


class ItemDone(BaseModel):
    """A worker has done an item."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    event: Literal["item"] = "item"
    name: str


Event = Advance | Notice | Failure | ItemDone
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse(line: str) -> Event | None:
    """The event in a line of the pipe; None if the line was cut short or holds something else."""
    try:
        return _EVENT.validate_python(json.loads(line))
    except (ValueError, RecursionError):
        return None


def emit(event: str, **fields: Any) -> bool:
    """Sends one event to the parent. Returns False if no parent listens."""
    if event != "error" and os.environ.get("RANK", "0") != "0":
        return True  # rank 0 says it
    path = os.environ.get(VARIABLE)
    if path is None:
        return False
    line = json.dumps({"event": event, **fields}) + "\n"
    try:
        with open(os.open(path, os.O_WRONLY), "wb", buffering=0) as pipe:
            pipe.write(line.encode())
    except OSError:  # the parent has ended; the supervisor will end this process
        return False
    return True


class Progress:
    """Counts the steps of one stage.

    Args:
        stage: the stage's name.
        total: number of steps.
        done: steps that are already complete, in a resumed stage.
    """

    def __init__(self, stage: str, total: int, done: int = 0):
        self.stage, self.total, self.done = stage, total, done
        self._logged = 0.0
        self.advance(0)

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Counts `steps` more and reports, with `values` to show (loss, tokens per second)."""
        self.done += steps
        if emit("progress", stage=self.stage, done=self.done, total=self.total, **values):
            return
        if self.done >= self.total or time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            extra = "".join(
                f", {name} {value:.4g}" if isinstance(value, float) else f", {name} {value}"
                for name, value in values.items()
            )
            log.info("%s %d/%d%s", self.stage, self.done, self.total, extra)
