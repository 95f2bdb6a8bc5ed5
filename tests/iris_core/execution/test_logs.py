"""Logs stay small: files are rotated, a service's by its supervisor; very long lines are cut, with a count."""

from __future__ import annotations

import io
import sys
from contextlib import closing
from pathlib import Path

import pytest

from iris_core.execution import supervision
from iris_core.execution.logs import LONGEST_LINE, LogFile, lines, named
from iris_core.execution.supervision import LOG_BYTES, Label
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.unit


def test_lines_are_whole_and_huge_ones_cut_with_a_count() -> None:
    words = "word " * 10_000  # 50,000 characters
    found = list(lines(io.StringIO(f"first\n{words}\n\n{'x' * LONGEST_LINE}\nlast")))
    assert [found[0], *found[2:]] == ["first", "", "x" * LONGEST_LINE, "last"]
    assert found[1] == "word " * 2_000 + "… 40,000 more characters"


def test_what_a_named_process_prints_begins_with_its_name() -> None:
    """A line that is written in parts is one line for the others that write to the same log."""
    log = io.StringIO()
    stream = named("rank 1", log)
    print("one", end=" ", file=stream)
    assert log.getvalue() == ""
    print("line\nand another", file=stream)
    print("the end", end="", file=stream)
    stream.close()
    assert log.getvalue() == "rank 1: one line\nrank 1: and another\nrank 1: the end\n"


def test_a_line_without_an_end_is_not_kept_in_memory() -> None:
    (found,) = lines(io.StringIO("y" * 1_000_000))
    assert found.endswith("… 992,000 more characters")
    assert len(found) < LONGEST_LINE


def test_a_secret_is_not_cut_in_two() -> None:
    address = "http://me:S3cr3t@host"
    text = "a" * (LONGEST_LINE - 15) + f" {address} " + "b " * 100
    assert "S3c" not in next(lines(io.StringIO(text)))


def test_a_log_file_is_rotated_and_appended_to(tmp_path: Path) -> None:
    log, line = tmp_path / "stage.log", "z" * 1000
    log.write_text("before\n")
    with closing(LogFile(log)) as file:
        for _ in range(LOG_BYTES // 1000 + 10):
            file.write(line)
    old = tmp_path / "stage.log.1"
    assert {path.name for path in tmp_path.iterdir()} == {"stage.log", "stage.log.1"}
    assert old.read_text().startswith(f"before\n{line}\n")
    assert max(log.stat().st_size, old.stat().st_size) <= LOG_BYTES
    assert log.read_text().splitlines()[-1] == line


def test_a_log_that_cannot_be_written_says_so() -> None:
    with closing(LogFile(Path("/dev/full"))) as file, pytest.raises(OSError, match="No space left"):
        file.write("x")


def test_a_service_keeps_appending_to_a_log_that_its_supervisor_keeps_small(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    code = f"""
import os, time
print("first", flush=True)
print("x" * {LOG_BYTES}, flush=True)
while os.path.getsize({str(log)!r}):
    os.waitpid(os.spawnlp(os.P_NOWAIT, "true", "true"), 0)
    time.sleep(0.1)
print("last", flush=True)
"""
    with log.open("a") as file:
        process = supervision.start("service", [sys.executable, "-c", code], {}, file, Label.new())
    assert process.wait(PATIENCE_S) == 0
    assert log.read_text() == "last\n"
    assert (tmp_path / "service.log.1").read_text().startswith("first\nxxx")
