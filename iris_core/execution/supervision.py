"""Supervision of processes: a command ends with the process that started it, and nothing it started outlives it.

    supervisor = start("generate", command, {**os.environ, "IRIS_LAUNCH": launch_id}, stdout)
    supervisor.wait()                          # the command's exit code; nothing below it is left
    end(supervisor, "IRIS_LAUNCH", launch_id)  # the same at once, for whatever reason

A supervisor (this file, run as a small process) stands between the two. It relies on the kernel, not on what processes
say about themselves: they change their titles, sessions and environments.

- It is a subreaper: whatever loses its parent below it becomes its child. It ends when it has no child left.
- Its input is a pipe that closes when the process that started it is gone, however that came about.
- The command gets SIGTERM when the supervisor is gone, and a stage's forks, such as vLLM's engine, SIGKILL when the
  stage is gone (`tie_forks`): where all of them are killed at once, nobody else is left to do it.
- Where a supervisor was killed, its starter looks for the launch id in the environment that processes got at their
  start. The kernel shows those bytes even where a new title has replaced their beginning.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

GRACE_S = 10.0  # from SIGTERM to SIGKILL
ORPHAN_GRACE_S = 2.0  # the same where the starter is gone and nobody waits for a clean end
LOOK_EVERY_S = 0.05
LOG_BYTES = 10_000_000  # of a log; an older one, `<name>.1`, is kept beside it
LOG_EVERY_S = 10.0  # between looks at its size
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def start(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    stdout: int | IO[Any],
    *,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    outlives: bool = False,
) -> subprocess.Popen[str]:
    """Starts `command` below a supervisor, in a session of its own.

    Args:
        name: what the supervisor is called in lists of processes.
        command: program and arguments.
        environment: of the command; a variable with a value of its own in it lets `end` find all that belongs to it.
        stdout: where its output and errors go, as `subprocess.Popen` takes it; a file that is open for appending is kept
            small for as long as the command runs.
        cwd: where it runs.
        pass_fds: file descriptors it gets.
        outlives: it goes on when this process ends.

    Returns:
        The supervisor, which ends as the command did once nothing below it is left.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, name],
        env=environment,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=pass_fds,
    )
    assert process.stdin is not None  # open for as long as this process lives
    log = None if isinstance(stdout, int) else str(Path(stdout.name).absolute())
    request = {"command": list(command), "grace": GRACE_S, "outlives": outlives, "log": log}
    with suppress(BrokenPipeError):  # it has ended already, and its exit code says so
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    return process


def end(supervisor: subprocess.Popen[str], variable: str, value: str) -> None:
    """Ends what a supervisor was started for, and waits until nothing is left of it.

    Args:
        supervisor: from `start`.
        variable: the environment variable by which what belongs to it is found where the supervisor was killed.
        value: its value.
    """
    supervisor.terminate()
    supervisor.wait()
    end_marked(variable, value)


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Every live process that was started with `variable` set to `value`, whatever it has become since."""
    return by_value(variable).get(value, [])


def by_value(variable: str) -> dict[str, list[psutil.Process]]:
    """This user's live processes that were started with `variable` set, by its value: others' may claim anything."""
    start = f"{variable}=".encode()
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        place = Path(f"/proc/{process.pid}")
        with suppress(OSError, psutil.NoSuchProcess):
            if place.stat().st_uid != os.geteuid():
                continue
            for entry in (place / "environ").read_bytes().split(b"\0"):
                if entry.startswith(start):
                    value = entry.removeprefix(start).decode(errors="replace")
                    found.setdefault(value, []).append(process)
    return found


def end_marked(variable: str, value: str) -> None:
    """Kills every process that was started with `variable` set to `value`."""
    while processes := marked(variable, value):
        send(processes, signal.SIGKILL)
        time.sleep(LOOK_EVERY_S)


def end_tree(pid: int) -> None:
    """Kills a process and all below it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        send([*process.children(recursive=True), process], signal.SIGKILL)


def send(processes: Sequence[psutil.Process], number: int) -> None:
    """Sends a signal to those of the processes that still live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Has the kernel send this process a signal when the thread that has started it ends.

    Args:
        parent: its process id; if it is gone already, this process ends at once.
        number: the signal.
    """
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def tie_forks() -> None:
    """From now on whatever the main thread forks ends when this process does, as do forks of forks."""
    main = threading.main_thread().ident  # a fork from another thread would end with that thread

    def tie() -> None:
        if threading.get_ident() == main:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    os.register_at_fork(after_in_child=tie)


class _Tree:
    """A command and all below it, seen from the process that is to end after them.

    Args:
        command: program and arguments.
    """

    def __init__(self, command: list[str]):
        supervisor = os.getpid()
        self.code: int | None = None
        self.command = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            close_fds=False,  # those passed to the supervisor are the command's
            start_new_session=True,  # a signal to its group does not reach the supervisor
            preexec_fn=lambda: end_with_parent(supervisor, signal.SIGTERM),
        )

    def lives(self) -> bool:
        """Collects what has ended. Returns whether anything is left."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.command.pid:
                    self.code = self.command.returncode = os.waitstatus_to_exitcode(ended[1])
            return True
        return False

    def end(self, grace: float) -> None:
        """SIGTERM to all, `grace` seconds, then SIGKILL until nothing is left, however fast it forks."""
        send(psutil.Process().children(recursive=True), signal.SIGTERM)
        deadline = time.monotonic() + grace
        while self.lives() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
        while self.lives():
            send(psutil.Process().children(recursive=True), signal.SIGKILL)
            time.sleep(LOOK_EVERY_S)


def main() -> NoReturn:
    """The supervisor: reads its request, starts the command, ends after it and as it did."""
    signals = _catch_signals()
    request = json.loads(sys.stdin.readline())
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    tree = _Tree(request["command"])
    watched = [signals] if request["outlives"] else [signals, sys.stdin.fileno()]
    grace = request["grace"]
    while tree.lives() and tree.code is None:
        if request["log"]:
            _keep_small(sys.stdout.fileno(), request["log"])
        ready, _, _ = select.select(watched, [], [], LOG_EVERY_S)
        if not ready:
            continue
        if ready != [signals]:
            grace = min(grace, ORPHAN_GRACE_S)
            break
        if set(os.read(signals, 4096)) != {signal.SIGCHLD}:
            break
    tree.end(grace)
    _exit_as(tree.code or 0)


def _catch_signals() -> int:
    """Where the number of each signal can be read that this process gets, a byte each; none of them ends it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    return read


def _keep_small(descriptor: int, log: str) -> None:
    """Moves what is in a log that is open for appending to `<log>.1` once it is large; a line written just then may go."""
    if os.fstat(descriptor).st_size > LOG_BYTES:
        with suppress(OSError):  # a full disk, which the log is not to fill further
            shutil.copyfile(log, f"{log}.1")
        os.ftruncate(descriptor, 0)


def _exit_as(code: int) -> NoReturn:
    """Ends this process with an exit code, or by the signal that ended the command, without a core file of its own."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main()
