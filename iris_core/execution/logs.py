"""Log files and log lines that stay small: files are rotated, very long lines are cut.

    for line in lines(process.stdout): ...    # "[[0.1, 0.2 … 48,120 more characters"
    sys.stderr = named("rank 1", sys.stderr)  # "rank 1: INFO loaded the model"
    with closing(LogFile(path)) as log: log.write(line)

A file that a service appends to is kept small by the service's supervisor (`iris_core.execution.supervision`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedIOBase, TextIOWrapper
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any, TextIO

from iris_core.execution.supervision import LOG_BYTES

LONGEST_LINE = 10_000  # characters
PARTIAL_WORD = re.compile(r"\S{1,2000}\Z")  # may be the first half of a secret


class LogFile(RotatingFileHandler):
    """A log file of at most `LOG_BYTES`; an older one is kept beside it.

    Args:
        path: the file; lines are appended to it.
    """

    def __init__(self, path: Path):
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")

    def write(self, line: str) -> None:
        """Appends a line.

        Raises:
            OSError: it cannot be written, for example on a full disk.
        """
        self.handle(makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Closes the file; `write` has already raised an error for what a full disk did not take."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: LogRecord) -> None:  # noqa: N802
        """Raises the error from `write`; `logging` would print it and go on."""
        raise


def named(name: str, stream: TextIO) -> TextIO:
    """`stream` by whole lines with `name` at their beginning, if any, for one of several processes with one log."""
    return TextIOWrapper(_Named(name, stream), encoding="utf-8", errors="replace", line_buffering=True)


def lines(stream: IO[str]) -> Iterator[str]:
    """The lines of `stream` without their ends; of a line over `LONGEST_LINE`, the beginning and a count."""
    while line := stream.readline(LONGEST_LINE):
        more = 0
        while not line.endswith("\n") and (rest := stream.readline(LONGEST_LINE)):
            more += len(rest.rstrip("\n"))
            if rest.endswith("\n"):
                break
        yield _cut(line, more) if more else line.rstrip("\n")


def _cut(line: str, more: int) -> str:
    kept = PARTIAL_WORD.sub("", line)
    return f"{kept}… {more + len(line) - len(kept):,} more characters"


class _Named(BufferedIOBase):
    """Bytes, of which whole lines are written to `stream`, with `name` before each, if it has one."""

    def __init__(self, name: str, stream: TextIO):
        self.name, self.stream, self._rest = name, stream, b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, data: Any) -> int:
        *whole, self._rest = (self._rest + bytes(data)).split(b"\n")
        prefix = f"{self.name}: " if self.name else ""
        for line in whole:
            self.stream.write(f"{prefix}{line.decode()}\n")
        return len(data)

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        if self._rest:
            self.write(b"\n")
        super().close()
