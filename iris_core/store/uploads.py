"""The copy in a bucket of a stage's folder, for stores that are kept in S3: what a running stage writes to it.

    with uploading(folder, patience) as copy:      # None in a local store
        ...                                        # each unit is uploaded as it is put, on a thread
        copy.publish(text, manifest.files)         # the rest, then the manifest

The process of a stage holds a lease on the folder in the bucket, beside the lock on the folder here. Its uploads wait
for an outage of the server to end. Units that other processes put, on other machines, are uploaded at once.

A unit may be removed while it is uploaded, as old checkpoints are: what goes up are links to its files. One that is
removed before that is left out; then the copies of those before it stay until a newer unit is there.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from iris_core.common.digest import file_digest
from iris_core.common.errors import StageFailed
from iris_core.common.files import make_folder, remove
from iris_core.common.outages import notify, wait_out
from iris_core.store.copies import Copy, Files, copy_of, pull_units, unit_path
from iris_core.store.folders import DIGESTS, LINKS, LOCK, MANIFEST, WORK
from iris_core.store.lease import Lease
from iris_core.store.remote import Conflict

OWNER = ".mirror"  # the file in a mirror with its own random name
LAST_STEP_S = 10.0  # for the upload under way when a stage fails
UNIT, DIGEST = "unit", "digest"  # links in a folder of `LINKS`

_running: dict[Path, Uploading] = {}  # by the folder of each stage that this process runs


class Uploading:
    """What a running stage writes to the copy of its folder.

    Args:
        copy: of its folder.
        lease: on the copy.
        patience: seconds for which an outage of the server is waited out.
    """

    def __init__(self, copy: Copy, lease: Lease, patience: float):
        self.copy, self.lease, self.patience = copy, lease, patience
        self.steps: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self.error: Exception | None = None
        self.ended = self.completing = self.behind = False
        self.removed: set[Path] = set()  # units whose copies stay until a newer one is there
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def add(self, step: Callable[[], object]) -> None:
        """Does `step` after those before it, on a thread.

        Raises:
            IrisError: of an earlier step.
        """
        if self.error is not None:
            raise self.error
        self.steps.put(step)

    def push(self, path: Path) -> None:
        """Uploads a unit; the work of a stage that is done does not need it."""
        if self.completing and WORK in path.relative_to(self.copy.folder).parts:
            return
        if _push(self.copy, path):
            self.behind = False
            self._remove_copies()
        elif not self.behind:
            self.behind = True
            notify(f"{path.name} was replaced before it was uploaded: uploads are slow, {self.copy.uri} is behind")

    def remove(self, path: Path) -> None:
        """Removes the copy of a unit, once a newer one has been uploaded."""
        self.removed.add(path)
        if not self.behind:
            self._remove_copies()

    def _remove_copies(self) -> None:
        for path in self.removed:
            if not path.exists():  # else it was written again
                _remove(self.copy, path)
        self.removed.clear()

    def drain(self) -> None:
        """Waits until all steps are done.

        Raises:
            IrisError: of one of them.
        """
        self.steps.join()
        if self.error is not None:
            raise self.error

    def resume(self) -> None:
        """Brings the complete units of the copy here, and uploads those that are only here.

        A manifest is removed: the stage runs again.
        """
        self._surely(lambda: self.copy.remote.remove([f"{self.copy.name}/{MANIFEST}"]))
        theirs = wait_out(self.patience, lambda: pull_units(self.copy.folder))
        ours = {file.name for file in (self.copy.folder / DIGESTS).glob("*")} - theirs
        for file in list(self.copy.folder.rglob("*")):
            path = unit_path(self.copy.folder, file.relative_to(self.copy.folder), ours)
            if path == file:
                self.add(partial(self.push, path))

    def publish(self, manifest: str, files: Files) -> None:
        """Uploads what is not there yet of `files`, then the manifest.

        Args:
            manifest: its text.
            files: that it names.

        Raises:
            StageFailed: another run has completed the stage, or has taken over the lease.
            OutageError: the server did not answer for as long as the patience lasts.
        """
        self.completing = True
        self.drain()
        copy = self.copy
        self._surely(
            lambda: copy.remote.upload(
                (copy.folder / name, f"{copy.name}/{name}", digest) for name, (_, digest) in files.items()
            )
        )
        self._surely(lambda: self._write_manifest(manifest.encode()))

    def tidy(self, files: Files) -> None:
        """Removes what a complete stage's copy does not need: all but the manifest and its `files`."""
        digests = {f"{DIGESTS}/{Path(name).name}" for name in files}
        kept = {*files, *digests, MANIFEST, LOCK}
        name, remote = self.copy.name, self.copy.remote
        self._surely(lambda: remote.remove(f"{name}/{each}" for each in remote.names(name) if each not in kept))

    def _write_manifest(self, content: bytes) -> None:
        name = f"{self.copy.name}/{MANIFEST}"
        try:
            self.copy.remote.write(name, content, new=True)
        except Conflict as error:
            found = self.copy.remote.read(name)
            if found is None or found.content != content:  # else the reply to an earlier try was lost
                raise StageFailed(f"{self.copy.uri} was completed by another run: run again to reuse it") from error

    def close(self) -> None:
        """Ends the thread without the steps that are left; a resumed stage does them."""
        self.ended = True
        self.steps.put(None)
        self.thread.join(LAST_STEP_S)
        if self.thread.is_alive():  # until this process ends
            self.lease.leave()

    def _surely(self, step: Callable[[], object]) -> None:
        """Does `step` while the lease is held, as soon as the server answers."""

        def checked() -> None:
            if not self.ended:
                self.lease.check()
                step()

        wait_out(self.patience, checked)

    def _work(self) -> None:
        while (step := self.steps.get()) is not None:
            try:
                if self.error is None:
                    self._surely(step)
            except Exception as error:  # raised in the thread of the stage
                self.error = error
            finally:
                self.steps.task_done()


@contextmanager
def uploading(folder: Path, patience: float) -> Iterator[Uploading | None]:
    """Holds the lease on the copy of a stage's folder until the block ends; None in a local store.

    Args:
        folder: the stage's folder, which this process has locked.
        patience: seconds for which an outage of the server is waited out.

    Raises:
        ServiceError: the bucket's server does not answer.
    """
    copy = copy_of(folder)
    if copy is None:
        yield None
        return
    with Lease(copy.remote, f"{copy.name}/{LOCK}", owner_of(copy.folder.parents[1])).held(patience) as lease:
        running = _running[copy.folder] = Uploading(copy, lease, patience)
        try:
            yield running
        finally:
            del _running[copy.folder]
            running.close()


def is_running(folder: Path) -> bool:
    """Whether this process runs the stage in a folder of a store in S3: what is there is newer than its copy."""
    return folder.absolute() in _running


def put_unit(folder: Path, path: Path, patience: float) -> None:
    """Uploads the unit at `path`, on a thread if this process runs the stage; nothing in a local store.

    Args:
        folder: the stage's folder.
        path: the unit, in it.
        patience: seconds for which an outage of the server is waited out, if this process does not run the stage.

    Raises:
        IrisError: of an earlier upload, or of this one.
    """
    copy = copy_of(folder)
    if copy is None:
        return
    if running := _running.get(copy.folder):
        running.add(partial(running.push, path.absolute()))
    else:
        wait_out(patience, partial(_push, copy, path))


def remove_unit(folder: Path, path: Path) -> None:
    """Removes the copy of the unit at `path`, if this process runs the stage."""
    copy = copy_of(folder)
    if copy and (running := _running.get(copy.folder)):
        running.add(partial(running.remove, path.absolute()))


def owner_of(root: Path) -> str:
    """The name of the mirror `root` among all mirrors, for leases."""
    make_folder(root)
    file, temporary = root / OWNER, root / f"{OWNER}.{uuid.uuid4().hex}"
    if not file.exists():
        temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(temporary, file)
        temporary.unlink()
    return f"{file.read_text(encoding='utf-8')}@{socket.gethostname()}"  # a folder may be copied to another machine


def _push(copy: Copy, path: Path) -> bool:
    """Makes the copy of a unit what it is here: a killed stage may have left other files there, as of more ranks.

    Returns:
        False if the unit is no longer here.
    """
    links, name = _links(copy, path), _object(copy, path)
    if links is None:
        return False
    unit, digest = links / UNIT, links / DIGEST
    files = {_object(copy, path / link.relative_to(unit)): link for link in (unit, *unit.rglob("*")) if link.is_file()}
    copy.remote.remove({f"{name}/{each}" for each in copy.remote.names(name)} - files.keys())
    copy.remote.upload((link, each, file_digest(link)) for each, link in files.items())
    copy.remote.write(f"{copy.name}/{DIGESTS}/{path.name}", digest.read_bytes())
    remove(links)
    return True


def _links(copy: Copy, path: Path) -> Path | None:
    """A folder with links to a unit and its digest, of an earlier try if the unit is gone; None if that has none."""
    place = copy.folder / LINKS / path.name
    if not path.exists():
        return place if (place / DIGEST).exists() else None
    remove(place)
    make_folder(place)
    try:
        for file in (path, *path.rglob("*")):
            if file.is_file():
                link = place / UNIT / file.relative_to(path)
                make_folder(link.parent)
                os.link(file, link)
        os.link(copy.folder / DIGESTS / path.name, place / DIGEST)  # last
    except FileNotFoundError:  # it is being removed
        return None
    return place


def _remove(copy: Copy, path: Path) -> None:
    """The digest goes first: without one, what is left is no unit."""
    name = _object(copy, path)
    copy.remote.remove([f"{copy.name}/{DIGESTS}/{path.name}"])
    copy.remote.remove([name, *(f"{name}/{each}" for each in copy.remote.names(name))])


def _object(copy: Copy, file: Path) -> str:
    return f"{copy.name}/{file.absolute().relative_to(copy.folder).as_posix()}"
