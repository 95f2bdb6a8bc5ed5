"""Pipes and files in memory between a process and those that it starts, opened by path.

A path like /proc/123/fd/7 reaches a descriptor of process 123 from any process of the same user, for as long as 123
lives. Inherited descriptors would not do: torchrun closes them before it starts a rank.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO


def path_of(descriptor: int) -> str:
    """The path by which other processes open a descriptor of this process."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


@contextmanager
def in_memory(text: str) -> Iterator[str]:
    """The path of a file in memory that holds `text`: none is left behind, whatever ends this process."""
    descriptor = os.memfd_create("spec")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        yield path_of(descriptor)


class Inbox:
    """A pipe that other processes write lines to; a thread reads it.

    Attributes:
        lines: what was read, without line ends.
        path: opens it for writing.
    """

    def __init__(self) -> None:
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        read, self._write = os.pipe()
        self.path = path_of(self._write)
        self._reader = read_lines(os.fdopen(read, encoding="utf-8", errors="replace"), self.lines.put)

    def close(self, timeout_s: float) -> None:
        """Reads on until all writers have ended, `timeout_s` seconds at most."""
        os.close(self._write)
        self._reader.join(timeout=timeout_s)


class Outbox:
    """A pipe that this process writes lines to, and another one reads by its path until `close`."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self._read, self._write = os.fdopen(read), os.fdopen(write, "w", encoding="utf-8", buffering=1)
        self.path = path_of(read)

    def write(self, line: str) -> None:
        """Sends one line."""
        self._write.write(f"{line}\n")

    def close(self) -> None:
        """The reader gets the end of the file."""
        self._write.close()
        self._read.close()


def read_lines(lines: Iterable[str] | TextIO, to: Callable[[str], object]) -> threading.Thread:
    """Starts a thread that calls `to` with each of `lines`."""

    def run() -> None:
        for line in lines:
            to(line.rstrip("\n"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
