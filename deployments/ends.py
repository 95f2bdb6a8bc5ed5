"""How a command ends: with a message of one line and an exit code.

The code is 2 after an error, 130 after Ctrl-C, 128 + N after signal N. Only a bug of the program shows a traceback.
"""

from __future__ import annotations

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

from iris_core.common.disk import FULL, NOTHING_LEFT_BYTES
from iris_core.common.errors import IrisError, ServiceError, StoreError, first_line
from iris_core.common.markup import plain
from iris_core.execution.supervision import GRACE_S, terminate

P = ParamSpec("P")
ERROR = 2
errors = Console(stderr=True, emoji=False)


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Ends a command with a message and its exit code on IrisError, a full disk and Ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _print_stopped()
            raise typer.Exit(128 + signal.SIGINT) from None
        except Exception as error:
            known = error if isinstance(error, IrisError) else full_disk(error)
            if known is None:
                raise
            _print_error(known)
            raise typer.Exit(ERROR) from None

    return run


def full_disk(error: BaseException, folder: Path | None = None) -> StoreError | None:
    """The error that names the full disk, if `error` or one of its causes says that a disk is full.

    Args:
        error: what was raised.
        folder: a folder on that disk, for an error that names no file.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL:
            where = cause.filename or folder or Path.cwd()
            return StoreError(f"the disk of {where} is full: free some space, then run again to resume")
    return None


@contextmanager
def explained(store: Path, api: Callable[[], str]) -> Iterator[None]:
    """Raises one line for a full disk or a Prefect server that is gone, in whatever error they are wrapped.

    Args:
        store: the store; the block and a server of ours write to its disk.
        api: returns the Prefect server's address.

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
    if shutil.disk_usage(store).free < NOTHING_LEFT_BYTES:  # the server cannot write either
        return StoreError(f"the disk of {store} is full: free some space, then run again to resume")
    return ServiceError(
        f"Prefect: {api} no longer answers ({first_line(cause)}): start it again, then run again to resume"
    )


def end_on_signals(unreachable: Callable[[], bool]) -> None:
    """From now on SIGTERM and a closed terminal end the run as Ctrl-C does: it reports its end to Prefect first.

    Python handles a signal that comes just before a system call after that call, so the main thread must wait in short
    steps, as `iris_core.execution.launch` does.

    Args:
        unreachable: returns whether Prefect does not answer; then the run ends at once.
    """
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def end(number: int, frame: object) -> NoReturn:
        if number == signal.SIGHUP:  # they are gone, and writing to them would fail
            for stream in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if unreachable():
            _print_stopped()
            end_now(128 + number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def end_with(error: IrisError) -> NoReturn:
    """Ends the process with an error at once; reporting to Prefect would wait for its client, which tries again."""
    _print_error(error)
    end_now(ERROR)


def end_now(code: int) -> NoReturn:
    """Ends the process and its children, from any thread."""
    errors.show_cursor()
    terminate(psutil.Process().children(), 2 * GRACE_S)
    os._exit(code)


def echo(text: str) -> None:
    """Prints on the error output what the user may have to act on while the command goes on."""
    errors.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def again() -> str:
    """The command line that the user typed."""
    return plain(shlex.join(["iris", *sys.argv[1:]]))


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and its causes, each once: errors that are kept and raised again may form a cycle."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _print_error(error: IrisError) -> None:
    errors.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)


def _print_stopped() -> None:
    errors.print(f"stopped. To resume: {again()}", markup=False, highlight=False, soft_wrap=True)
