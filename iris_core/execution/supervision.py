"""Process supervision: a command ends with the process that started it, and nothing it started outlives it.

    label = Label.new()
    supervisor = start("generate", command, environment, stdout, label)
    supervisor.wait()       # the command's exit code; nothing below it is left
    end(supervisor, label)  # ends it now, for whatever reason

Stages, ranks, vLLM's engine, the servers and the worker use this module. It relies on what the kernel knows, not on
what processes say about themselves: they change their titles, sessions and environments.

A supervisor (this file, run as a small process) stands between a command and its parent, the process that called
`start`. It is a subreaper: a process below it that loses its parent becomes its child. It ends when it has no child
left. Each of its two tasks needs a second mechanism, for the case that the supervisor itself was killed:

- To notice that the parent died, the supervisor reads a pipe, which closes with the parent. If the supervisor was
  killed, the kernel sends the command SIGTERM, and SIGKILL to what a stage forked (`end_with_parent`,
  `end_forks_with_parent`). The kernel's signal cannot replace the pipe: it follows the thread that started the process,
  and Prefect runs tasks in threads.
- To find descendants, the supervisor walks its process tree. If the supervisor was killed, its parent looks for the
  label in the environment that each process got at its start (`Label`). Labels cannot replace the tree: a process may
  be started with an empty environment.

Ranks run below torchrun's agent (`iris_core.execution.agent`), which runs below the supervisor; the kernel ends them
with the agent. A worker of a stage has a supervisor of its own (`iris_core.execution.item_worker`), so that nothing is
left of a lost worker. Whether the process of a Prefect flow run lives is another question, which other processes ask
later: `deployments.lost` answers it with a file lock.
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
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

LAUNCH_VARIABLE = "IRIS_LAUNCH"
GRACE_S = 10.0  # from SIGTERM to SIGKILL
ORPHAN_GRACE_S = 2.0  # the same when the parent is gone
LOOK_EVERY_S = 0.05
LOG_BYTES = 10_000_000  # of a log; an older one, `<name>.1`, is kept beside it
LOG_EVERY_S = 10.0  # between looks at its size
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Label:
    """An environment variable with a unique value: it finds every process that was started with it.

    The kernel keeps the environment that a process got at its start, also where a new title replaced its beginning.

    Attributes:
        variable: its name.
        value: its value, which no other label has.
    """

    variable: str
    value: str

    @classmethod
    def new(cls) -> Label:
        """The label of a new launch."""
        return cls(LAUNCH_VARIABLE, uuid.uuid4().hex)

    def processes(self) -> list[psutil.Process]:
        """This user's live processes with the label."""
        return labelled(self.variable).get(self.value, [])

    def kill(self) -> None:
        """Kills every process with the label, until there is none."""
        while processes := self.processes():
            send(processes, signal.SIGKILL)
            time.sleep(LOOK_EVERY_S)


def labelled(variable: str) -> dict[str, list[psutil.Process]]:
    """This user's live processes that were started with `variable` set, by its value.

    Processes of other users are left out: they may set any variable.
    """
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


def start(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    stdout: int | IO[Any],
    label: Label,
    *,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    outlives: bool = False,
) -> subprocess.Popen[str]:
    """Starts `command` below a supervisor, in a session of its own.

    Args:
        name: the last word of the supervisor's command line.
        command: program and arguments.
        environment: of the command.
        stdout: where its output and errors go, as `subprocess.Popen` takes it. A file that is open for appending is
            kept small for as long as the command runs.
        label: is added to the environment.
        cwd: where it runs.
        pass_fds: file descriptors it gets.
        outlives: whether it goes on when this process ends.

    Returns:
        The supervisor, which ends with the command's exit code or signal once nothing below it is left.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, name],
        env={**environment, label.variable: label.value},
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


def end(supervisor: subprocess.Popen[str], label: Label) -> None:
    """Ends what a supervisor was started for, and waits until nothing is left of it.

    Args:
        supervisor: from `start`.
        label: what it was started with; finds what is left where the supervisor was killed.
    """
    supervisor.terminate()
    supervisor.wait()
    label.kill()


def supervisors(processes: Iterable[psutil.Process]) -> dict[psutil.Process, str]:
    """Those of `processes` that are supervisors, with their names."""
    return {process: words[-1] for process in processes if (words := command_line(process))[-2:-1] == [__file__]}


def command_line(process: psutil.Process) -> list[str]:
    """The words of a process's command line; empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie, which waits for its parent to read its exit code, has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Sends a signal to those of the processes that still live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def terminate(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Sends SIGTERM to the processes and waits until all have ended, `timeout_s` seconds at most."""
    send(processes, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)


def kill_tree(pid: int) -> None:
    """Kills a process and all below it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        send([*process.children(recursive=True), process], signal.SIGKILL)


def kill_session(leader: int) -> None:
    """Kills the processes of a session, also those that have a process group of their own, as below `timeout`."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


def how_ended(code: int) -> str:
    """An exit code of `subprocess` in words: "was killed by SIGKILL", "ended with exit code 1"."""
    if code >= 0:
        return f"ended with exit code {code}"
    known = {one.value: one.name for one in signal.Signals}  # real-time signals have a number only
    return f"was killed by {known.get(-code, f'signal {-code}')}"


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """From now on the kernel sends this process a signal when the thread that started it ends.

    Args:
        parent: process id of the parent; if it is gone already, this process ends at once.
        number: the signal.
    """
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def end_forks_with_parent() -> None:
    """From now on processes that the main thread forks are killed when this process ends, and so are their forks."""
    main = threading.main_thread().ident  # a fork from another thread would end with that thread

    def in_fork() -> None:
        if threading.get_ident() == main:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    os.register_at_fork(after_in_child=in_fork)


class _Tree:
    """A command and all below it, seen from the supervisor.

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
        """Reaps what has ended. Returns whether anything is left."""
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
    """The supervisor: reads its request, starts the command, ends after it and with its exit code."""
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
    """A descriptor to read the number of each signal from that this process gets, a byte each; none of them ends it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    return read


def _keep_small(descriptor: int, log: str) -> None:
    """Moves a large log that is open for appending to `<log>.1`; a line that is written meanwhile may be lost."""
    if os.fstat(descriptor).st_size > LOG_BYTES:
        with suppress(OSError):  # a full disk, which the log must not fill further
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
