"""Measured runs, each in its own process and interleaved round by round, so that the machine's drift affects all alike.

    with Run(ours, repeats=5) as a, Run(peer, repeats=5) as b:
        times = [(a.round(), b.round()) for _ in range(5)]

A run is a function with `Rounds` as its first argument. It sets up, calls `rounds.begin()` before and
`rounds.end(value)` after each measured piece of work, and returns its result. `Run(…)` returns when the set-up is done.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self


class RunFailed(Exception):
    """A run raised an error, or its process was killed."""


class Rounds:
    """The measured process's end: waits for its round, and reports."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def begin(self) -> None:
        """Reports that all is ready, and waits for the start of the round."""
        self.connection.send(("ready", None))
        self.connection.recv()

    def end(self, value: Any) -> None:
        """Reports the value of the round."""
        self.connection.send(("round", value))


class Run:
    """The parent's end: runs `function(rounds, **arguments)` in a new Python process, round by round.

    Args:
        function: importable, as are its arguments.
        arguments: of the function.

    Raises:
        RunFailed: the function raised an error, here or in any method.
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs, arguments))
        self._process.start()
        theirs.close()
        try:
            self._first: tuple[str, Any] | None = self._receive()
        except RunFailed:
            self._end()
            raise

    def round(self) -> Any:
        """Runs one round, and returns the value that it reported."""
        if self._first is None:
            self._receive("ready")
        self._first = None
        self._connection.send(None)
        return self._receive("round")[1]

    def result(self) -> Any:
        """What the function returned, after its last round."""
        return (self._first or self._receive("done"))[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, expected: str | None = None) -> tuple[str, Any]:
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RunFailed(f"its process ended with code {self._process.exitcode}") from None
        if kind == "error" or expected not in (None, kind):
            raise RunFailed(value if kind == "error" else f"{kind} instead of {expected}")
        return kind, value


def alone(function: Callable[..., Any], **arguments: Any) -> Any:
    """What `function(rounds, **arguments)` returns in a process of its own, without rounds."""
    with Run(function, **arguments) as run:
        return run.result()


def peak_bytes() -> int:
    """Peak memory of this process: of its accelerator where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def reset_peak() -> int:
    """Resets the peak, and returns the memory in use now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size from /proc; unlike the peak of `getrusage`, it is not inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _serve(function: Callable[..., Any], connection: Connection, arguments: dict[str, Any]) -> None:
    try:
        connection.send(("done", function(Rounds(connection), **arguments)))
    except (EOFError, BrokenPipeError):  # the parent needs no more rounds
        pass
    except BaseException:
        connection.send(("error", traceback.format_exc()))
