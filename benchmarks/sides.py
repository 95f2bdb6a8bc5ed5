"""The measured sides, each in a process of its own: they take turns, and each one's memory is its own.

    with Side(ours, turns=5) as a, Side(peer, turns=5) as b:
        times = [(a.turn(), b.turn()) for _ in range(5)]

A side is a function whose first argument is `Turns`: it sets up, calls `turns.begin()` before and `turns.end(value)`
after every measured piece of work, and returns what is known at the end. Setting up is over before `Side(…)` returns.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self


class SideFailed(Exception):
    """A side raised an error, or its process was killed."""


class Turns:
    """The side's end: waits until it is its turn, and reports."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def begin(self) -> None:
        """Says that all is ready, and waits for the word to begin."""
        self.connection.send(("ready", None))
        self.connection.recv()

    def end(self, value: Any) -> None:
        """Reports what the turn gave."""
        self.connection.send(("turn", value))


class Side:
    """The starter's end: runs `function(turns, **arguments)` in a fresh Python and gives it its turns.

    Args:
        function: importable, as is all it is called with.
        arguments: for the function.

    Raises:
        SideFailed: the function raised an error, here or in any method.
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs, arguments))
        self._process.start()
        theirs.close()
        self._first: tuple[str, Any] | None = self._receive()

    def turn(self) -> Any:
        """One turn; what it reported."""
        if self._first is None:
            self._receive("ready")
        self._first = None
        self._connection.send(None)
        return self._receive("turn")[1]

    def result(self) -> Any:
        """What the function returned; after its last turn."""
        return (self._first or self._receive("done"))[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
            raise SideFailed(f"its process ended with code {self._process.exitcode}") from None
        if kind == "error" or expected not in (None, kind):
            raise SideFailed(value if kind == "error" else f"{kind} instead of {expected}")
        return kind, value


def alone(function: Callable[..., Any], **arguments: Any) -> Any:
    """What `function(turns, **arguments)` returns in a process of its own, without turns."""
    with Side(function, **arguments) as side:
        return side.result()


def peak_bytes() -> int:
    """The most memory this process has had: of its accelerator where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def reset_peak() -> int:
    """Begins to measure the peak from here on; the memory in use now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size from /proc; unlike `getrusage`'s, its peak is not inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _serve(function: Callable[..., Any], connection: Connection, arguments: dict[str, Any]) -> None:
    try:
        connection.send(("done", function(Turns(connection), **arguments)))
    except (EOFError, BrokenPipeError):  # the starter has seen enough
        pass
    except BaseException:
        connection.send(("error", traceback.format_exc()))
