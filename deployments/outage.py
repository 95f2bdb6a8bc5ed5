"""Handles an outage of Prefect's API while a loop runs: prints a message at once, waits, and ends the loop in the end.

Prefect's client repeats its requests by itself; this module tells the user, and decides when to stop waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from iris_core.common.errors import IrisError, ServiceError

LOOK_EVERY_S = 3.0
ANSWER_S = 5.0
ECHO_EVERY_S = 60.0
MISSES = 2  # a busy server may miss one look


class Outage:
    """Looks every few seconds whether an API answers.

    Args:
        patience: how long an outage may last, in seconds.
        echo: called with a message, on another thread, when an outage begins, every minute of it, and when it ends.
        give_up: called with the error, on another thread, when an outage lasts longer than `patience` or the server
            cannot be started again.
    """

    def __init__(self, patience: float, echo: Callable[[str], None], give_up: Callable[[IrisError], object]):
        self.patience, self.echo, self.give_up = patience, echo, give_up
        self.since: float | None = None
        self.echoed = 0.0
        self.misses = 0

    @property
    def lasts(self) -> bool:
        """Whether there is an outage now."""
        return self.since is not None

    @contextmanager
    def watched(self, api: str, revive: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Watches an API while the block runs.

        Args:
            api: its address.
            revive: starts its server again if that is ours and has ended; returns whether it did.
        """
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_EVERY_S):
                try:
                    if revive():
                        self.echo(f"the Prefect server at {api} had ended: it runs again")
                    self._note(api, _fault(api))
                except IrisError as error:
                    if not over.is_set():
                        self.give_up(error)
                    return

        thread = threading.Thread(target=look, daemon=True, name="prefect-outage")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()  # it may be starting a server

    def _note(self, api: str, fault: str | None) -> None:
        """Handles what a look has found (`fault`: why the API does not answer); one message a minute at most."""
        now = time.monotonic()
        self.misses = self.misses + 1 if fault else 0
        if fault is None and self.since is not None:
            self.echo(f"Prefect answers again at {api}")
            self.since = None
        if self.misses < MISSES:
            return
        if self.since is None:
            self.since, self.echoed = now, now - ECHO_EVERY_S
        if now - self.since >= self.patience:
            raise ServiceError(
                f"Prefect: {api} has not answered for {_duration(self.patience)} ({fault}): start the server again, "
                "then run again to resume"
            )
        if now - self.echoed >= ECHO_EVERY_S:
            left = _duration(self.patience - (now - self.since))
            self.echo(f"Prefect: {api} does not answer ({fault}): start it again; waiting for it, at most {left} more")
            self.echoed = now


def _fault(api: str) -> str | None:
    """Why `api` does not answer; None if it does."""
    try:
        httpx.get(f"{api.rstrip('/')}/health", timeout=ANSWER_S).raise_for_status()
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" if minutes and not rest else f"{60 * minutes + rest} s"
