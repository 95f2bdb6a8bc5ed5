"""Progress of a stage: JSON lines to the process that started it, or a log line now and then when run by hand.

The starter passes a pipe's descriptor in `IRIS_PROGRESS_FD`. Each line is one object:
`{"event": "progress", "stage": "train", "done": 3, "total": 40, "loss": 0.61}`, or
`{"event": "notice", "message": "..."}` for what the stage waits for, or
`{"event": "error", "kind": "DataError", "message": "...", "exit_code": 2}`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

FD_VARIABLE = "IRIS_PROGRESS_FD"
LOG_EVERY_S = 5.0

log = logging.getLogger(__name__)


class _Advanced(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    event: Literal["progress"]
    stage: str
    done: int
    total: int


class _Noticed(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    event: Literal["notice"]
    message: str


class _Failed(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    event: Literal["error"]
    kind: str
    message: str


_EVENT: TypeAdapter[_Advanced | _Noticed | _Failed] = TypeAdapter(
    Annotated[_Advanced | _Noticed | _Failed, Field(discriminator="event")]
)


def parse(line: str) -> dict[str, Any] | None:
    """The event that a line of the pipe holds; None for one that was cut short or is none of ours."""
    try:
        return _EVENT.validate_python(json.loads(line)).model_dump()
    except (ValueError, RecursionError):
        return None


def emit(event: str, **fields: Any) -> bool:
    """Sends one event to the starter. Returns False if there is none."""
    descriptor = os.environ.get(FD_VARIABLE)
    if descriptor is None:
        return False
    line = json.dumps({"event": event, **fields}) + "\n"
    try:
        os.write(int(descriptor), line.encode())
    except OSError:  # the starter is gone; the supervisor ends this process
        return False
    return True


class Progress:
    """Counts the steps of one stage.

    Args:
        stage: the stage's name.
        total: number of steps.
        done: steps already behind us (a resumed stage does not start at 0).
    """

    def __init__(self, stage: str, total: int, done: int = 0):
        self.stage, self.total, self.done = stage, total, done
        self._logged = 0.0
        self.advance(0)

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Moves on by `steps` and reports, with any `values` worth seeing (loss, tokens per second)."""
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
