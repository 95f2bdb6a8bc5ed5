"""Outages of services: a step is repeated until the service answers again, or the patience is used up.

    runs = wait_out(600, lambda: tracking.holds(uri, ["..."]))

The first failure is reported at once, then once a minute, in the log and to the parent process of the stage.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from iris_core.common import progress
from iris_core.common.errors import OutageError, ServiceError

FIRST_PAUSE_S = 0.1  # short, for a single lost reply
LONGEST_PAUSE_S = 15.0
NOTIFY_EVERY_S = 60.0
SLOW_S = 30.0  # an answer that takes longer is reported

log = logging.getLogger(__name__)
T = TypeVar("T")


def wait_out(patience: float, step: Callable[[], T]) -> T:
    """Returns what `step` returns. The whole step is repeated while it raises ServiceError.

    Args:
        patience: for how many seconds after the first failure it is repeated; 0: it runs once.
        step: safe to repeat after a failure at any point, even if it succeeded and only the reply was lost.

    Raises:
        ServiceError: the step failed, and patience is 0.
        OutageError: it failed for `patience` seconds.
    """
    failed = notified = None
    pause = FIRST_PAUSE_S
    while True:
        try:
            found = step()
        except OutageError:  # of a step inside this one
            raise
        except ServiceError as error:
            if not patience:
                raise
            now = time.monotonic()
            failed = now if failed is None else failed
            if now - failed >= patience:
                raise OutageError(f"{error} (waited {patience:g} s, tracking.patience): run again to resume") from error
            if notified is None or now - notified >= NOTIFY_EVERY_S:
                notified = now
                notify(f"{error}: waiting up to {patience + failed - now:.0f} s for it to answer")
            time.sleep(min(pause, patience + failed - now))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            if failed is not None:
                log.info("it answers again after %.0f s", time.monotonic() - failed)
            return found


@contextmanager
def notify_if_slow(text: str) -> Iterator[None]:
    """Reports `text` once if the block takes long: a server that accepts a request may stay silent for minutes."""
    timer = threading.Timer(SLOW_S, notify, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def notify(text: str) -> None:
    """Reports what the stage waits for: in the log, and to the parent process, which shows it."""
    log.warning(text)
    progress.emit("notice", message=text)
