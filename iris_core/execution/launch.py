"""Launches a stage, as one process or as several ranks, and leaves none of its descendants alive.

A stage ends by itself, by an exception in its parent (cancel, Ctrl-C), or by the parent's death. In each case nothing
below it is left afterwards (`iris_core.execution.supervision`).
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from iris_core.common import gpus, progress
from iris_core.common.disk import full_disk_errors
from iris_core.common.errors import IrisError, StageFailed, first_line
from iris_core.common.files import make_folder
from iris_core.common.progress import Advance, Failure, ItemDone, Notice
from iris_core.execution import channels, devices, distributed, failure, logs, slots, supervision
from iris_core.store import Manifest, Spec, read_manifest
from iris_core.store.copies import adopt_manifest

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
    # threads that wait spin for a moment: sleeping at once costs a tenth to a sixth of a training step, and longer
    # spinning makes a shared machine three times slower
    "GOMP_SPINCOUNT": "30000",
    # freed tensors stay in the process: to give pages back and take them again costs a sixth of a training step; caches
    # of small blocks are off, because they lie between large blocks and keep those from being merged and reused
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    # oneDNN keeps code for every shape of matmul it has seen, half a megabyte each: enough for the rows of one batch
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}

ONE_MACHINE = ("--standalone", "--nnodes", "1", "--local-addr", "127.0.0.1")

Listener = Callable[[Advance | Notice], None]

log = logging.getLogger(__name__)


def launch(
    spec: Spec,
    folder: Path,
    on_progress: Listener = lambda event: None,
    on_log: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Runs `python -m iris_core.<stage>` on `spec` in `folder`, on several ranks where it has them, and waits for it.

    An exception in a listener is logged once. What the listener was called with is lost; the stage goes on.

    Args:
        spec: the stage's spec.
        folder: the output folder; the stage resumes what it finds there.
        on_progress: called with each progress event, on the calling thread.
        on_log: called with each line the stage prints, and with each line of the progress pipe that is not an event; on
            the thread that read it.

    Returns:
        The manifest. Its `reused` is set by `completed`, not here.

    Raises:
        IrisError: the stage's own error, rebuilt; StageFailed if it was killed or crashed.
    """
    with full_disk_errors(folder.parent):
        make_folder(folder)
    with channels.in_memory(spec.model_dump_json()) as request, _gpus(spec, folder, on_progress, on_log) as taken:
        command, variables = _command(spec, ["--spec", request, "--out", str(folder)], taken.gpus)
        error = supervise(spec.stage, command, on_progress, on_log, variables, taken.descriptors)
    manifest = read_manifest(folder)
    if error is None and manifest is None and adopt_manifest(folder):  # rank 0 may be on another machine
        manifest = read_manifest(folder)
    if error is None and manifest is not None:
        return manifest
    raise error or StageFailed(f"{spec.stage} ended without a manifest in {folder}: run again to resume")


def ranks_command(stage: str, arguments: Sequence[str], count: int, rendezvous: Sequence[str]) -> list[str]:
    """The command that runs `count` ranks of a stage on a machine, and ends with them.

    Args:
        stage: its name.
        arguments: of each rank.
        count: ranks on this machine.
        rendezvous: torchrun's options that say how this machine's ranks meet those of others.
    """
    agent = [sys.executable, "-m", "iris_core.execution.agent", *rendezvous, "--nproc-per-node", str(count)]
    return [*agent, "--max-restarts", "0", "-m", f"iris_core.{stage}", *arguments]


def supervise(
    stage: str,
    command: list[str],
    on_progress: Listener,
    on_log: Callable[[str], None],
    variables: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> IrisError | None:
    """Runs `command` to its end, and ends whatever it leaves behind.

    Args:
        stage: the stage's name.
        command: program and arguments.
        on_progress: as of `launch`.
        on_log: as of `launch`.
        variables: of its environment, before this process's.
        pass_fds: file descriptors that it keeps open.

    Returns:
        The error it reported, StageFailed if it was killed or crashed, or None.
    """
    label = supervision.Label.new()
    to_log = _Guarded(f"the log of {stage}", on_log)
    events = _Events(stage, _Guarded(f"the progress of {stage}", on_progress), to_log)
    environment = _environment(events.inbox.path, variables or {})
    process = supervision.start(stage, command, environment, subprocess.PIPE, label, pass_fds=pass_fds)
    assert process.stdout is not None
    reader = channels.read_lines(logs.lines(process.stdout), to_log)
    try:
        while process.poll() is None:
            events.take(timeout=LOOK_S)
        code = process.wait()
    finally:
        supervision.end(process, label)
        events.inbox.close(READ_S)
        reader.join(timeout=READ_S)
    events.take_rest()
    if code != 0 and not events.errors:
        return StageFailed(f"{stage} {supervision.how_ended(code)}: run again to resume")
    return failure.cause(events.errors) if events.errors else None


def _gpus(
    spec: Spec, folder: Path, on_progress: Listener, on_log: Callable[[str], None]
) -> AbstractContextManager[slots.Held]:
    """Takes the GPUs that a stage needs on this machine, and waits for them; Ray places its own."""
    names = gpus.visible() if spec.uses_gpus and spec.execution.launcher == "local" else []
    count = devices.processes(spec.execution) if names else 0

    def notify(message: str) -> None:
        on_log(message)
        on_progress(Notice(message=message))

    return slots.held(names, count, f"{spec.stage} in {folder}", notify)


def _command(spec: Spec, arguments: list[str], gpus: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command that runs a stage on `gpus`, and variables for it."""
    module = [sys.executable, "-m", f"iris_core.{spec.stage}", *arguments]
    if spec.execution.launcher == "ray":
        ranks = [sys.executable, "-m", "iris_core.execution.ray_ranks", *arguments]
        return ranks if spec.has_ranks else module, {}
    count = devices.processes(spec.execution)
    variables = devices.environment(count if spec.has_ranks else 1, gpus)
    if spec.has_ranks and count > 1:
        module = ranks_command(spec.stage, arguments, count, ONE_MACHINE)
    return module, variables


def _environment(progress_path: str, variables: Mapping[str, str]) -> dict[str, str]:
    """A stage's environment; the user's settings for CPUs and telemetry replace the defaults."""
    return {
        **TELEMETRY_OFF,
        **CPU_SETTINGS,
        **distributed.without_ranks(dict(os.environ)),
        **variables,
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
        progress.VARIABLE: progress_path,
    }


class _Guarded:
    """Calls a listener, one thread at a time, and goes on after its exceptions; the first one is logged.

    Args:
        what: what it listens to, for the log.
        listener: the function to call.
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
    """Handles the lines of a stage's progress pipe: events go to a listener, other lines to the log, errors are kept.

    Args:
        stage: the stage's name.
        on_progress: gets the progress events.
        on_log: gets the lines that are not events.

    Attributes:
        inbox: the pipe.
        errors: of all ranks, in the order in which they came.
    """

    def __init__(self, stage: str, on_progress: Listener, on_log: Callable[[str], None]):
        self.stage, self.on_progress, self.on_log = stage, on_progress, on_log
        self.inbox = channels.Inbox()
        self.errors: list[IrisError] = []

    def take(self, timeout: float) -> None:
        """Handles the next line, if one comes within `timeout` seconds."""
        with suppress(queue.Empty):
            line = self.inbox.lines.get(timeout=timeout)
            match progress.parse(line):
                case None | ItemDone():
                    self.on_log(line)
                case Failure() as said:
                    self.errors.append(failure.rebuild(self.stage, said))
                case event:
                    self.on_progress(event)

    def take_rest(self) -> None:
        """Handles all lines that were read."""
        while not self.inbox.lines.empty():
            self.take(timeout=0)
