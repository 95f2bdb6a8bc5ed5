"""Outages of services: a step is repeated until what it needs answers again, or patience is over.

    runs = wait_out(600, lambda: tracking.holds(uri, ["..."]))

The first failure is said at once, then once a minute, in the log and to the process that started the stage.
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

FIRST_PAUSE_S = 0.1  # a reply that was lost costs no more
LONGEST_PAUSE_S = 15.0
SAY_EVERY_S = 60.0
SLOW_S = 30.0  # that an answer may take before it is said

log = logging.getLogger(__name__)
T = TypeVar("T")


def wait_out(patience: float, step: Callable[[], T]) -> T:
    """What `step` gives, repeated whole while it raises ServiceError.

    Args:
        patience: how long after the first failure it is repeated, in seconds; 0: it is done once.
        step: may be done again after it failed anywhere, also where it worked and only the answer was lost.

    Raises:
        ServiceError: the step failed, and patience is 0.
        OutageError: it failed for `patience` seconds.
    """
    failed = said = None
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
            if said is None or now - said >= SAY_EVERY_S:
                said = now
                tell(f"{error}: waiting up to {patience + failed - now:.0f} s for it to answer")
            time.sleep(min(pause, patience + failed - now))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            if failed is not None:
                log.info("it answers again after %.0f s", time.monotonic() - failed)
            return found


@contextmanager
def said_if_slow(text: str) -> Iterator[None]:
    """Says `text` once where the block takes long: a server that accepts and is silent holds a request for minutes."""
    timer = threading.Timer(SLOW_S, tell, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tell(text: str) -> None:
    """Says what is waited for: in the log, and to the process that started the stage, which shows it."""
    log.warning(text)
    progress.emit("notice", message=text)
