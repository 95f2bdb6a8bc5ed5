"""A worker of a stage: a process with one engine, which does the items that it is sent one after the other.

`LocalWorker` starts it and `serve` is what it runs. Items reach it by a pipe, whose end is also its own; it answers by
its progress pipe (`iris_core.common.progress`).
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from iris_core.common import progress
from iris_core.common.errors import StageFailed
from iris_core.common.progress import Failure, ItemDone, Notice
from iris_core.execution import distributed, engine_process, supervision
from iris_core.execution.channels import Inbox, Outbox
from iris_core.execution.failure import rebuild

LABEL_VARIABLE = "IRIS_WORKER"
STDERR = 2
LOOK_S = 0.2
CLOSE_S = 20.0  # for an idle worker to close its engine
READ_S = 10.0  # for the last lines of a worker that has ended


class WorkerLost(Exception):
    """A worker ended before it had done its item. The text says how: "was killed by SIGKILL"."""


class LocalWorker:
    """A worker on this machine, below a supervisor of its own: nothing of it outlives this process.

    Args:
        stage: the stage's name.
        spec: path of its spec; the worker reads it when it starts.
        out: the stage's folder.
        name: begins the lines of its log, which go to this process's error output.
        variables: of its environment, beside this process's.
    """

    def __init__(self, stage: str, spec: str, out: Path, name: str, variables: Mapping[str, str]):
        self.stage = stage
        self._label = supervision.Label(LABEL_VARIABLE, uuid.uuid4().hex)
        self._items, self._events = Outbox(), Inbox()
        self._busy = False
        module = [sys.executable, "-m", f"iris_core.{stage}", "--spec", spec, "--out", str(out)]
        environment = {**distributed.without_ranks(dict(os.environ)), **variables}
        self._process = supervision.start(
            f"{stage}, {name}",
            [*module, "--items", self._items.path, "--name", name],
            {**environment, progress.VARIABLE: self._events.path},
            STDERR,
            self._label,
        )

    def handle(self, item: str) -> None:
        """Does an item and returns when its unit is written.

        Raises:
            WorkerLost: the worker has ended.
            IrisError: the worker's own error.
        """
        self._busy = True
        self._items.write(item)
        while True:
            match progress.parse(self._next_line()):
                case ItemDone():
                    self._busy = False
                    return
                case Failure() as failure:
                    error = rebuild(self.stage, failure)
                    if type(error) is StageFailed:  # what it stands for may not happen to another worker
                        raise WorkerLost(f"failed ({error})")
                    raise error
                case Notice() as notice:
                    progress.emit("notice", message=notice.message)

    def close(self) -> None:
        """Ends the worker: at once in the middle of an item, else when it has closed its engine."""
        self._items.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if self._busy else CLOSE_S)
        supervision.end(self._process, self._label)
        self._events.close(READ_S)

    def _next_line(self) -> str:
        lines = self._events.lines
        while True:
            ended = self._process.poll()
            try:
                return lines.get(timeout=LOOK_S)
            except queue.Empty:
                if ended is not None:
                    raise WorkerLost(supervision.how_ended(ended)) from None


def serve(stage: str, items: Path, open_engine: Callable[[], Callable[[str], None]]) -> None:
    """Runs a worker: opens its engine, does each item that is named in the pipe `items`, ends with the pipe."""
    with items.open(encoding="utf-8") as names, engine_process.watched(stage):
        handle = open_engine()
        for name in map(str.strip, names):
            handle(name)
            progress.emit("item", name=name)
