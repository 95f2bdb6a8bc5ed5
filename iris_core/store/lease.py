"""A lock in a bucket: an object that its holder renews, and that others take over once it was not renewed for long.

    with Lease(remote, "objects/train-…/.lock", owner="…").held():
        ...

Every write depends on the object's ETag, so of two writers at once one fails. How old a lease is, the server's clock
says. Renewal is a thread's work; a holder that comes back too late finds the lease taken, and stops.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from iris_core.common.errors import IrisError, StageFailed
from iris_core.common.outages import NOTIFY_EVERY_S, notify, wait_out
from iris_core.store.remote import Conflict, Found, Remote

SECONDS = 120.0  # without renewal, after which a lease may be taken over
RENEWALS = 4  # in that time
POLL_S = 2.0  # between looks at the lease of another holder

log = logging.getLogger(__name__)


class Lease:
    """A lock on a name in a bucket.

    Args:
        remote: the bucket.
        name: of the lease's object.
        owner: of two leases with one owner the newer replaces the older: its holder has died.
        note: text for others that read the lease.
    """

    def __init__(self, remote: Remote, name: str, owner: str, note: str = ""):
        self.remote, self.name, self.owner, self.note = remote, name, owner, note
        self.id, self.tag, self.renewed = uuid.uuid4().hex, "", 0.0
        self.lost = self.left = False
        self.changing, self.ended = threading.Lock(), threading.Event()

    @contextmanager
    def held(self, patience: float = 0.0) -> Iterator[Lease]:
        """Waits for the lease, renews it until the block ends, and gives it back.

        Args:
            patience: seconds for which an outage of the server is waited out at the start.

        Raises:
            ServiceError: the server does not answer.
        """
        wait_out(patience, self._acquire)
        thread = threading.Thread(target=self._renew_until_the_end, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            thread.join()
            self._release()

    def check(self) -> None:
        """Makes sure that the lease is still held, before a write that depends on it.

        Raises:
            StageFailed: another process has taken it over.
            ServiceError: the server does not answer, and the lease is too old to be sure.
        """
        if not self.lost and time.monotonic() - self.renewed > SECONDS / 2:
            self._renew()
        if self.lost:
            raise StageFailed(
                f"{self.remote.uri}/{self.name} was taken over by another run, because this one did not renew it for "
                f"{SECONDS:g} s: run again to go on with what the other one has done"
            )

    def leave(self) -> None:
        """Lets the lease end by itself after the block: writes that depend on it may still be under way."""
        self.left = True

    def _acquire(self) -> None:
        notified = None
        while not self._try():
            now = time.monotonic()
            if notified is None or now - notified >= NOTIFY_EVERY_S:
                notified = now
                notify(f"{self.remote.uri}/{self.name} is held by a run on another machine: waiting for it to end")
            time.sleep(POLL_S)

    def _try(self) -> bool:
        with suppress(Conflict):
            self._write(new=True)
            return True
        found = self.remote.read(self.name)
        if found is None or not self._is_free(found):
            return False
        with suppress(Conflict):
            self._write(tag=found.tag)
            return True
        return False

    def _is_free(self, found: Found) -> bool:
        held = parse(found)
        return held.get("owner") == self.owner or is_over(found)

    def _write(self, **condition: Any) -> None:
        started = time.monotonic()
        content = {"owner": self.owner, "lease": self.id, "host": socket.gethostname(), "seconds": SECONDS}
        content |= {"note": self.note, "write": uuid.uuid4().hex}  # unlike any other write, so that its ETag is, too
        self.tag = self.remote.write(self.name, json.dumps(content).encode(), **condition)
        self.renewed = started

    def _renew_until_the_end(self) -> None:
        while not self.ended.wait(SECONDS / RENEWALS) and not self.lost:
            try:
                self._renew()
            except IrisError as error:  # the next try may find the server, and the lease still ours
                log.warning("%s", error)

    def _renew(self) -> None:
        with self.changing:
            try:
                self._write(tag=self.tag)
            except Conflict:
                self._look()

    def _look(self) -> None:
        """After a conflict: an earlier write of ours whose reply was lost is none."""
        found = self.remote.read(self.name)
        if found is not None and parse(found).get("lease") == self.id:
            with suppress(Conflict):
                self._write(tag=found.tag)
                return
        self.lost = True

    def _release(self) -> None:
        """Removes the lease if it is surely ours; otherwise it ends by itself."""
        if not (self.lost or self.left) and time.monotonic() - self.renewed < SECONDS / 2:
            with suppress(IrisError):
                self.remote.remove([self.name])


def parse(found: Found) -> dict[str, Any]:
    """What a lease says; nothing if it is damaged."""
    try:
        content = json.loads(found.content)
        return content if isinstance(content, dict) else {}
    except ValueError:
        return {}


def is_over(found: Found) -> bool:
    """Whether a lease was not renewed for as long as it says; a damaged one counts as over."""
    return found.age >= float(parse(found).get("seconds", 0))
