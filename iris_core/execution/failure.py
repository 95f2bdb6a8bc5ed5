"""How a stage's process says that it failed: to its parent, on its error output, and with its exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from iris_core.common import progress
from iris_core.common.errors import IrisError


def report(error: IrisError, exit_code: int | None = None) -> int:
    """Sends an error to the parent and prints it; returns the exit code, by default the error's own."""
    code = error.exit_code if exit_code is None else exit_code
    progress.emit("error", kind=type(error).__name__, message=str(error), exit_code=code)
    print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def abort(error: IrisError, exit_code: int | None = None) -> NoReturn:
    """Reports an error and ends this process at once, from any thread and whatever the main thread waits for."""
    os._exit(report(error, exit_code))
