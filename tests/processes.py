"""Processes as tests look at them. Any may end meanwhile, and a zombie, which nobody has waited for yet, has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psutil

from iris_core.execution.supervision import lives

T = TypeVar("T")
PATIENCE_S = 300.0  # for what comes within seconds on an idle machine


def command_line(process: psutil.Process) -> str:
    """Its command line, or its title; empty if it has ended or may not be looked at."""
    with suppress(psutil.Error, OSError):
        return " ".join(process.cmdline())
    return ""


def environment(process: psutil.Process) -> dict[str, str]:
    """The environment that it was started with; empty if it has ended or may not be looked at."""
    with suppress(psutil.Error, OSError):
        return process.environ()
    return {}


def processes(*words: str) -> list[psutil.Process]:
    """The live processes whose command lines hold all of `words`."""
    return [each for each in psutil.process_iter() if all(word in command_line(each) for word in words)]


def with_variable(name: str, value: str) -> list[psutil.Process]:
    """The live processes that were started with this variable."""
    return [each for each in psutil.process_iter() if environment(each).get(name) == value]


def below(pid: int) -> list[psutil.Process]:
    """The live processes that a process has started, and those that they have."""
    with suppress(psutil.NoSuchProcess):
        return [each for each in psutil.Process(pid).children(recursive=True) if lives(each)]
    return []


def above(process: psutil.Process) -> list[psutil.Process]:
    """The process that has started `process`, the one that has started that, and so on; none if it has ended."""
    with suppress(psutil.Error):
        return process.parents()
    return []


def pid_lives(pid: int) -> bool:
    """Whether a process has not ended."""
    with suppress(psutil.NoSuchProcess):
        return lives(psutil.Process(pid))
    return False


def wait_for(condition: Callable[[], T], seconds: float = PATIENCE_S) -> T:
    """Waits until `condition` holds, and returns what it returned."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"it did not come within {seconds} s"
        time.sleep(0.05)
    return found
