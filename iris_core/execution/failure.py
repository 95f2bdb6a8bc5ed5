"""How a stage's process says that it failed, and how the process that started it reads that.

It says so to its parent, on its error output, and with its exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from iris_core.common import errors, progress
from iris_core.common.errors import ExchangeFailed, IrisError, StageCrashed
from iris_core.common.progress import Failure


def report(error: IrisError, exit_code: int | None = None) -> int:
    """Sends an error to the parent and prints it; returns the exit code, by default the error's own."""
    code = error.exit_code if exit_code is None else exit_code
    progress.emit("error", kind=type(error).__name__, message=str(error), exit_code=code)
    print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def abort(error: IrisError, exit_code: int | None = None) -> NoReturn:
    """Reports an error and ends this process at once, from any thread and whatever the main thread waits for."""
    os._exit(report(error, exit_code))


def rebuild(stage: str, failure: Failure) -> IrisError:
    """The error that a process of `stage` reported; StageCrashed if it is none of ours."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, IrisError):
        return kind(failure.message)
    return StageCrashed(f"{stage} crashed with {failure.kind}: {failure.message} (its log has the traceback)")


def cause(found: Sequence[IrisError]) -> IrisError:
    """Of the errors of several ranks, in their order, the one that explains the others."""
    return min(found, key=_explains_less)


def may_follow(error: IrisError) -> bool:
    """Whether `error` may follow from another rank's, which comes later then and explains more."""
    return _explains_less(error) > 0


def _explains_less(error: IrisError) -> int:
    """A rank that is lost makes the exchanges of the others fail, which explains nothing. A crash may follow, too."""
    order: dict[type[IrisError], int] = {StageCrashed: 1, ExchangeFailed: 2}
    return order.get(type(error), 0)
