"""One experiment's view of the store: where its stages have their output, and which model and data it belongs to."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from iris_core.common import mirrors
from iris_core.common.disk import check_free_space
from iris_core.common.errors import StoreError
from iris_core.common.files import read_sealed, seal, write_atomic
from iris_core.common.outages import wait_out
from iris_core.store import copies
from iris_core.store.folders import MANIFEST, OBJECTS
from iris_core.store.home import Home, link_to
from iris_core.store.manifest import Manifest, read_manifest
from iris_core.store.places import links_of_one_recipe
from iris_core.store.remote import remote
from iris_core.store.spec import Spec

if TYPE_CHECKING:
    from iris_core.config import Experiment

IDENTITY = "experiment.json"
RECIPE = "recipe.yaml"  # of the newest run

log = logging.getLogger(__name__)


class Store:
    """One experiment's view of the store.

    Args:
        root: the store's folder, created if missing, or an S3 URI. Of a store in S3, `root` becomes its mirror here.
        experiment: the experiment's name, a folder under `root`.
        patience: seconds for which an outage of S3 is waited out.
    """

    def __init__(self, root: Path | str, experiment: str, patience: float = 0.0):
        self.root = mirrors.local_root(root)
        self.home, self.patience = self.root / experiment, patience

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The store that an experiment names."""
        return cls(experiment.store, experiment.name, experiment.tracking.patience)

    @property
    def uri(self) -> str | None:
        """The S3 URI of the store; None for a local one."""
        return mirrors.uri_of(self.root)

    def check(self) -> None:
        """Makes the experiment's folder, and that of the stages, which may be a link to another disk.

        Raises:
            StoreError: one cannot be written, or its disk is full.
            ServiceError: S3 does not answer.
        """
        for folder in (self.home, self.root / OBJECTS):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            except OSError as error:
                remedy = "IRIS_CACHE" if self.uri else "`store`"
                raise StoreError(
                    f"store: cannot write {folder} ({error.strerror}): set {remedy} to another folder"
                ) from error
            check_free_space(folder)
        if self.uri:
            remote(self.uri).check()
            self.pull()

    def pull(self) -> None:
        """Brings the experiment's links, identity and recipe from S3 here; does nothing for a local store.

        Raises:
            ServiceError: S3 does not answer.
        """
        self._in_bucket(lambda home: home.pull((IDENTITY, RECIPE)))

    def claim(self, identity: dict[str, str]) -> None:
        """Reserves the experiment's folder for `identity`, such as the digests of model and data.

        A damaged identity file is written again. The links to stages are removed then, as they may belong to another
        experiment; the output of its stages is found again by content.

        Raises:
            StoreError: the folder holds an experiment with another identity, or cannot be written.
        """
        self.check()
        file = self.home / IDENTITY
        held = read_sealed(file)
        if held is None and os.path.lexists(file):
            log.warning("%s is damaged: it is written again with this run's model and data", file)
            self.unlink()
        held = identity if held is None else held
        for name in identity:
            if held.get(name) != identity[name]:
                raise StoreError(
                    f"store: {self.home} holds another experiment ({name} was {held.get(name)}, now {identity[name]}): "
                    "give this one another `name`, or set `store` to another folder"
                )
        write_atomic(file, seal(identity))
        self.push(file)

    def push(self, file: Path) -> None:
        """Writes a small file of the experiment's folder to S3, too; does nothing for a local store."""
        self._in_bucket(lambda home: home.push(file.name))

    @contextmanager
    def one_recipe(self, recipe: str) -> Iterator[None]:
        """Keeps `recipe` in the experiment's folder, and runs of other recipes out of it until the block ends.

        Runs of the same recipe may share the folder. If an earlier run had another recipe, its links are removed: the
        folder shows the iterations of one recipe only. The output of those stages is found again by content.

        Raises:
            StoreError: a run of another recipe is under way.
        """
        with ExitStack() as stack:
            if home := self._home():
                stack.enter_context(home.one_recipe(recipe, self.patience))
                self.pull()  # another run may have had another recipe since the last time
            stack.enter_context(self._one_recipe_here(recipe))
            yield

    @contextmanager
    def _one_recipe_here(self, recipe: str) -> Iterator[None]:
        folder, file = os.open(self.home, os.O_RDONLY), self.home / RECIPE
        try:
            if _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) and not _holds(file, recipe):
                if os.path.lexists(file):
                    self.unlink()
                write_atomic(file, recipe)
                self.push(file)
            _locked(folder, fcntl.LOCK_SH)
            if not _holds(file, recipe):  # another run was first, perhaps since the lock was changed to a shared one
                raise StoreError(
                    f"store: a run of experiment {self.home.name!r} with other settings is under way: wait for it to "
                    "end, or give this one another `name`"
                )
            yield
        finally:
            os.close(folder)

    def holds(self, recipe: str) -> bool:
        """Whether the experiment's folder is that of `recipe`: of the newest run, which may be under way."""
        self.pull()
        return _holds(self.home / RECIPE, recipe)

    def folder(self, spec: Spec) -> Path:
        """The folder for the output of `spec`, which may not exist yet."""
        return self.root / OBJECTS / f"{spec.stage}-{spec.key()[:16]}"

    def link(self, place: str, folder: Path) -> None:
        """Links `<experiment>/<place>`, such as "iteration-0/train", to a stage's folder."""
        self._in_bucket(lambda home: home.link(place, folder))  # first: a pull removes links that are not there
        link_to(self.home / place, folder)

    def unlink(self) -> None:
        """Removes the links to the stages of a recipe and to its comparison. The folders of the stages stay."""
        self._in_bucket(Home.unlink)  # first: a pull makes the links that are there
        for link in links_of_one_recipe(self.home):
            link.unlink(missing_ok=True)

    def manifest(self, place: str) -> Manifest | None:
        """The manifest at `<experiment>/<place>`, or None if that stage has not completed."""
        folder = Path(os.path.realpath(self.home / place))
        manifest = read_manifest(folder)
        if manifest is None and self.uri and copies.fetch(folder / MANIFEST):
            return read_manifest(folder)
        return manifest

    def _home(self) -> Home | None:
        return Home(self.home, remote(self.uri)) if self.uri else None

    def _in_bucket(self, step: Callable[[Home], None]) -> None:
        if home := self._home():
            wait_out(self.patience, partial(step, home))


def _holds(file: Path, recipe: str) -> bool:
    return file.is_file() and file.read_bytes() == recipe.encode()


def _locked(folder: int, kind: int) -> bool:
    """Whether an open folder could be locked; where the file system has no locks, every run counts as alone."""
    try:
        fcntl.flock(folder, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("runs of several recipes at once are not noticed here: %s", error.strerror)
    return True
