"""What happens when Prefect's API no longer answers while a loop runs: a message at once, patience, then the end.

Prefect's client tries again by itself for as long as it is let; this says so, and knows when to stop.
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
SAY_EVERY_S = 60.0
MISSES = 2  # a busy server may miss one


class Outage:
    """Looks every few seconds whether an API answers.

    Args:
        patience: seconds that it may be away.
        say: told, on another thread, when it goes away, every minute, and when it is back.
        give_up: called with the error, on another thread, when patience ends or its server cannot be started again.
    """

    def __init__(self, patience: float, say: Callable[[str], None], give_up: Callable[[IrisError], object]):
        self.patience, self.say, self.give_up = patience, say, give_up
        self.since: float | None = None
        self.told = 0.0
        self.misses = 0

    @property
    def lasts(self) -> bool:
        """Whether the API is away now."""
        return self.since is not None

    @contextmanager
    def watched(self, api: str, revive: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Watches `api` while inside.

        Args:
            api: its address.
            revive: starts its server again if that is ours and has ended, and returns whether it had.
        """
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_EVERY_S):
                try:
                    if revive():
                        self.say(f"the Prefect server at {api} had ended: it runs again")
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
        """Takes in what a look has found, at most one message a minute."""
        now = time.monotonic()
        self.misses = self.misses + 1 if fault else 0
        if fault is None and self.since is not None:
            self.say(f"Prefect answers again at {api}")
            self.since = None
        if self.misses < MISSES:
            return
        if self.since is None:
            self.since, self.told = now, now - SAY_EVERY_S
        if now - self.since >= self.patience:
            raise ServiceError(
                f"Prefect: {api} has not answered for {_duration(self.patience)} ({fault}): start the server again, then "
                "run again to resume"
            )
        if now - self.told >= SAY_EVERY_S:
            left = _duration(self.patience - (now - self.since))
            self.say(f"Prefect: {api} does not answer ({fault}): start it again; waiting for it, at most {left} more")
            self.told = now


def _fault(api: str) -> str | None:
    """Why `api` does not answer, None if it does."""
    try:
        httpx.get(f"{api.rstrip('/')}/health", timeout=ANSWER_S).raise_for_status()
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" if minutes and not rest else f"{60 * minutes + rest} s"
