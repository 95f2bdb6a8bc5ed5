"""Starts a stage as a subprocess and leaves no descendant of it alive.

Three things end a stage: its own end, an exception in the starter (cancel, Ctrl-C), and the starter's death. Whatever
the way, nothing below it is left afterwards (`iris_core.supervision`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from iris_core import errors, logs, supervision
from iris_core.errors import IrisError, StageFailed
from iris_core.progress import FD_VARIABLE
from iris_core.store import Manifest, Spec, read_manifest, write_atomic

LAUNCH_VARIABLE = "IRIS_LAUNCH"
READ_S = 10.0  # for the last lines of a stage that has ended
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
        on_log: called with each line the stage prints, on a thread of its own.

    Returns:
        The manifest. Its `reused` is set by `completed`, not here.

    Raises:
        IrisError: the stage's own error, rebuilt; StageFailed if it was killed or crashed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = folder / f".request-{uuid.uuid4().hex}.json"
    write_atomic(request, spec.model_dump_json())
    command = [
        sys.executable,
        "-m",
        f"iris_core.{spec.stage}",
        "--spec",
        str(request),
        "--out",
        str(folder),
    ]
    try:
        error = supervise(spec.stage, command, on_progress, on_log)
    finally:
        request.unlink(missing_ok=True)
    manifest = read_manifest(folder)
    if error is None and manifest is not None:
        return manifest
    raise error or StageFailed(
        f"{spec.stage} ended without a manifest in {folder}: run again to resume"
    )


def supervise(
    stage: str, command: list[str], on_progress: Listener, on_log: Callable[[str], None]
) -> IrisError | None:
    """Runs `command` to its end and ends whatever it leaves behind; the error it reported, if it did."""
    launch_id = uuid.uuid4().hex
    error: IrisError | None = None
    with _pipe() as (progress_in, progress_out):
        environment = {
            **TELEMETRY_OFF, **CPU_SETTINGS, **os.environ, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1",
            FD_VARIABLE: str(progress_out), LAUNCH_VARIABLE: launch_id,
        }  # fmt: skip
        process = supervision.start(
            stage, command, environment, subprocess.PIPE, pass_fds=[progress_out]
        )
        events: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert process.stdout is not None
        readers = [_read(logs.lines(process.stdout), on_log), _read(progress_in, events.put)]
        try:
            while (line := _next(events, process)) is not None:
                event = json.loads(line)
                if event["event"] == "error":
                    error = _rebuild(stage, event)
                else:
                    on_progress(event)
            code = process.wait()
        finally:
            supervision.end(process, LAUNCH_VARIABLE, launch_id)
            os.close(progress_out)
            for reader in readers:
                reader.join(timeout=READ_S)
    if code != 0 and error is None:
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        error = StageFailed(f"{stage} {how}: run again to resume")
    return error


@contextmanager
def _pipe() -> Iterator[tuple[TextIO, int]]:
    """Both ends of the progress pipe."""
    progress_read, progress_write = os.pipe()
    with os.fdopen(progress_read, encoding="utf-8") as progress_in:
        yield progress_in, progress_write


def _read(lines: Iterable[str], to: Callable[[str], None]) -> threading.Thread:
    """Hands each of `lines` to `to`, on a thread of its own."""

    def run() -> None:
        for line in lines:
            to(line.rstrip("\n"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _next(events: queue.SimpleQueue[str], process: subprocess.Popen[str]) -> str | None:
    """The next event, or None once `process` has ended and none is left."""
    while True:
        ended = process.poll() is not None
        try:
            return events.get(timeout=0.2)
        except queue.Empty:
            if ended:
                return None


def _rebuild(stage: str, event: dict[str, Any]) -> IrisError:
    kind = getattr(errors, event["kind"], None)
    if kind is None:
        crash = StageFailed(
            f"{stage} crashed with {event['kind']}: {event['message']} (its log has the traceback)"
        )
        crash.retryable = False
        return crash
    return kind(event["message"])


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals have a number only."""
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")
