"""How a command ends: with a message of one line and an exit code, whatever stopped it.

2 after an error, 130 after Ctrl-C, 128 + N after signal N. A traceback is for faults of the program only.
"""

from __future__ import annotations

import errno
import functools
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, ParamSpec

import httpx
import psutil
import typer
from rich.console import Console
from rich.text import Text

from iris_core.common.errors import IrisError, ServiceError, StoreError, first_line
from iris_core.common.markup import plain
from iris_core.execution.supervision import GRACE_S, send

P = ParamSpec("P")
ERROR = 2
SOME_BYTES = 1 << 20  # a database that has less cannot be written
errors = Console(stderr=True, emoji=False)


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Ends a command with a message and its exit code on IrisError, a full disk, Ctrl-C, and a reader that has left."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _say_stopped()
            raise typer.Exit(128 + signal.SIGINT) from None
        except Exception as error:
            known = error if isinstance(error, IrisError) else full_disk(error)
            if known is None:
                raise
            _say_error(known)
            raise typer.Exit(ERROR) from None

    return run


def full_disk(error: BaseException, folder: Path | None = None) -> StoreError | None:
    """The error that names the full disk, if `error` or what led to it says that one is full.

    Args:
        error: what was raised.
        folder: on that disk, where the error names no file.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            where = cause.filename or folder or Path.cwd()
            return StoreError(f"the disk of {where} is full: free some space, then run again to resume")
    return None


@contextmanager
def explained(store: Path, api: Callable[[], str]) -> Iterator[None]:
    """Turns what a full disk or a Prefect server that is gone raises, whatever it is wrapped in, into one line.

    Args:
        store: on whose disk the block writes, as a server of ours does.
        api: the Prefect server's address.

    Raises:
        StoreError: the disk is full.
        ServiceError: Prefect does not answer.
    """
    try:
        yield
    except IrisError:
        raise
    except Exception as error:
        known = full_disk(error, store) or _prefect_failed(error, api(), store)
        if known is None:
            raise
        raise known from error


def _prefect_failed(error: Exception, api: str, store: Path) -> IrisError | None:
    cause = next((each for each in _causes(error) if isinstance(each, httpx.HTTPError)), None)
    if cause is None:
        return None
    if shutil.disk_usage(store).free < SOME_BYTES:  # the server cannot write either
        return StoreError(f"the disk of {store} is full: free some space, then run again to resume")
    return ServiceError(
        f"Prefect: {api} no longer answers ({first_line(cause)}): start it again, then run again to resume"
    )


def end_on_signals(unreachable: Callable[[], bool]) -> None:
    """SIGTERM and a closed terminal end the run as Ctrl-C does: it reports its end to Prefect first.

    Args:
        unreachable: whether Prefect cannot be told; then the run ends at once.
    """
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def end(number: int, frame: object) -> NoReturn:
        if number == signal.SIGHUP:  # they are gone, and whoever writes to them would fail
            for stream in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if unreachable():
            _say_stopped()
            end_now(128 + number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def end_with(error: IrisError) -> NoReturn:
    """Ends the process with an error at once, without telling Prefect, whose client would go on trying."""
    _say_error(error)
    end_now(ERROR)


def end_now(code: int) -> NoReturn:
    """Ends the process and what it has started, from any thread."""
    errors.show_cursor()
    below = psutil.Process().children()
    send(below, signal.SIGTERM)
    psutil.wait_procs(below, timeout=2 * GRACE_S)
    os._exit(code)


def echo(text: str) -> None:
    """Says on the error output what the user may have to act on while the command goes on."""
    errors.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def again() -> str:
    """The command line that was typed."""
    return plain(shlex.join(["iris", *sys.argv[1:]]))


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and those it was raised from, which may go round in a circle where errors are kept and raised again."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _say_error(error: IrisError) -> None:
    errors.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)


def _say_stopped() -> None:
    errors.print(f"stopped. To resume: {again()}", markup=False, highlight=False, soft_wrap=True)
