"""Starts a stage as a subprocess and leaves no descendant of it alive.

Three things end a stage: its own end, an exception in the starter (cancel, Ctrl-C), and the starter's death. Whatever
the way, nothing below it is left afterwards (`iris_core.execution.supervision`).
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from iris_core.common import errors, progress
from iris_core.common.disk import full_disk_errors
from iris_core.common.errors import IrisError, StageFailed, first_line
from iris_core.common.files import make_folder
from iris_core.common.progress import FD_VARIABLE
from iris_core.execution import logs, supervision
from iris_core.store import Manifest, Spec, read_manifest

LAUNCH_VARIABLE = "IRIS_LAUNCH"
READ_S = 10.0  # for the last lines of a stage that has ended
LOOK_S = 0.2
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
CPU_SETTINGS = {
    # threads that wait spin for a moment: sleeping at once costs a tenth to a sixth of a training step, spinning on
    # makes a shared machine three times slower
    "GOMP_SPINCOUNT": "30000",
    # freed tensors stay with the process: giving pages back and taking them again costs a sixth of a training step;
    # without caches of small blocks, which keep large ones apart, they are found again
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    # oneDNN keeps code for every shape of product it has seen, half a megabyte each: enough for the rows of one batch
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}

Listener = Callable[[dict[str, Any]], None]

log = logging.getLogger(__name__)


def launch(
    spec: Spec,
    folder: Path,
    on_progress: Listener = lambda event: None,
    on_log: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Runs `python -m iris_core.<stage>` on `spec` in `folder` and waits for it.

    Args:
        spec: the stage's spec.
        folder: the output folder; the stage resumes what it finds there.
        on_progress: called with each progress event, on the calling thread.
        on_log: called with each line the stage prints, and with what it reports and is no event; on whichever thread read it.

    An exception in a listener is logged once and costs what it was called with, never the stage.

    Returns:
        The manifest. Its `reused` is set by `completed`, not here.

    Raises:
        IrisError: the stage's own error, rebuilt; StageFailed if it was killed or crashed.
    """
    with full_disk_errors(folder.parent):
        make_folder(folder)
    with _in_memory(spec.model_dump_json()) as request:
        module, file = f"iris_core.{spec.stage}", f"/dev/fd/{request}"
        command = [sys.executable, "-m", module, "--spec", file, "--out", str(folder)]
        error = supervise(spec.stage, command, on_progress, on_log, pass_fds=[request])
    manifest = read_manifest(folder)
    if error is None and manifest is not None:
        return manifest
    raise error or StageFailed(f"{spec.stage} ended without a manifest in {folder}: run again to resume")


def supervise(
    stage: str, command: list[str], on_progress: Listener, on_log: Callable[[str], None], pass_fds: Sequence[int] = ()
) -> IrisError | None:
    """Runs `command` to its end and ends whatever it leaves behind; the error it reported, if it did."""
    launch_id = uuid.uuid4().hex
    to_log = _Guarded(f"the log of {stage}", on_log)
    events = _Events(stage, _Guarded(f"the progress of {stage}", on_progress), to_log)
    with _pipe() as (progress_in, progress_out):
        environment = {
            **TELEMETRY_OFF,
            **CPU_SETTINGS,
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "TQDM_DISABLE": "1",
            FD_VARIABLE: str(progress_out),
            LAUNCH_VARIABLE: launch_id,
        }
        process = supervision.start(stage, command, environment, subprocess.PIPE, pass_fds=[progress_out, *pass_fds])
        assert process.stdout is not None
        readers = [
            _read(progress_in, events.lines.put),
            _read(logs.lines(process.stdout), to_log),
        ]
        try:
            while process.poll() is None:
                events.take(timeout=LOOK_S)
            code = process.wait()
        finally:
            supervision.end(process, LAUNCH_VARIABLE, launch_id)
            os.close(progress_out)
            for reader in readers:
                reader.join(timeout=READ_S)
    events.take_rest()
    if code != 0 and events.error is None:
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return StageFailed(f"{stage} {how}: run again to resume")
    return events.error


class _Guarded:
    """A listener whose exceptions stop nobody: the first is logged, and it goes on being called, one thread at a time.

    Args:
        what: it listens to.
        listener: what is called.
    """

    def __init__(self, what: str, listener: Callable[[Any], None]):
        self.what, self.listener = what, listener
        self.failed, self.lock = False, threading.Lock()

    def __call__(self, value: Any) -> None:
        with self.lock:
            try:
                self.listener(value)
            except Exception as error:
                if not self.failed:
                    log.warning("%s is incomplete: %s: %s", self.what, type(error).__name__, first_line(error))
                self.failed = True


class _Events:
    """What a stage reports: progress goes to one listener, what is no event to the log, the error is kept.

    Args:
        stage: its name.
        on_progress: gets the progress.
        on_log: gets the other lines.
    """

    def __init__(self, stage: str, on_progress: Listener, on_log: Callable[[str], None]):
        self.stage, self.on_progress, self.on_log = stage, on_progress, on_log
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.error: IrisError | None = None

    def take(self, timeout: float) -> None:
        """Passes on the next line, if there is one in time."""
        with suppress(queue.Empty):
            line = self.lines.get(timeout=timeout)
            event = progress.parse(line)
            if event is None:
                self.on_log(line)
            elif event["event"] == "error":
                self.error = _rebuild(self.stage, event)
            else:
                self.on_progress(event)

    def take_rest(self) -> None:
        """Passes on all lines that were read."""
        while not self.lines.empty():
            self.take(timeout=0)


@contextmanager
def _in_memory(text: str) -> Iterator[int]:
    """A descriptor of a file with `text` that is on no disk: nothing of it is left, however this process ends."""
    descriptor = os.memfd_create("spec")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        yield descriptor


@contextmanager
def _pipe() -> Iterator[tuple[TextIO, int]]:
    """Both ends of the progress pipe."""
    progress_read, progress_write = os.pipe()
    with os.fdopen(progress_read, encoding="utf-8", errors="replace") as progress_in:
        yield progress_in, progress_write


def _read(lines: Iterable[str], to: Callable[[str], None]) -> threading.Thread:
    """Hands each of `lines` to `to`, on a thread of its own."""

    def run() -> None:
        for line in lines:
            to(line.rstrip("\n"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _rebuild(stage: str, event: dict[str, Any]) -> IrisError:
    kind = getattr(errors, event["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, IrisError)):
        crash = StageFailed(f"{stage} crashed with {event['kind']}: {event['message']} (its log has the traceback)")
        crash.retryable = False
        return crash
    return kind(event["message"])


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals have a number only."""
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")
