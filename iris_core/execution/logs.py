"""Log files and log lines that stay small: files are rotated, huge lines cut.

    for line in lines(process.stdout): ...    # "[[0.1, 0.2 … 48,120 more characters"
    with closing(LogFile(path)) as log: log.write(line)

Files that other processes append to are kept small by the supervisor above them (`iris_core.execution.supervision`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from iris_core.execution.supervision import LOG_BYTES

LONGEST_LINE = 10_000  # characters
PARTIAL_WORD = re.compile(r"\S{1,2000}\Z")  # may be the first half of a secret


class LogFile(RotatingFileHandler):
    """A log file of at most `LOG_BYTES`, and an older one beside it.

    Args:
        path: of the file; it is appended to.
    """

    def __init__(self, path: Path):
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")

    def write(self, line: str) -> None:
        """Appends a line.

        Raises:
            OSError: the disk is full, say.
        """
        self.handle(makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Closes the file; what a full disk did not take was an error of `write` already."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: LogRecord) -> None:  # noqa: N802
        """Lets `write` raise what it is called for; `logging` would print it and go on."""
        raise


def lines(stream: IO[str]) -> Iterator[str]:
    """The lines of `stream` without their ends. Of what is longer than `LONGEST_LINE`, the beginning and a count."""
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
