"""Units of work, such as a shard, a checkpoint or the score of a benchmark: a resumed stage keeps the complete ones.

    units = Units(out, spec.key())
    if not units.holds(path):                # missing or damaged
        with units.writing(path) as place:
            write_parquet(place, table)

A unit is a file or a folder. The folder `.digests` holds for each a SHA-256 of its content and of the key of its spec.
The digest is on the disk before the unit gets its final name. So every unit under its final name was complete, a unit
that does not match its digest was damaged later, and a kill costs at most the unit that is being written.

In a store that is kept in S3, a unit is uploaded as well, and one that is missing or damaged here is looked for there.
A unit that differs from the bucket's does not count, except for the process that runs the stage, which uploads its own.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from iris_core.common.digest import file_digest, folder_digest, json_digest
from iris_core.common.errors import StageFailed
from iris_core.common.files import install, make_folder, remove, sync, write_atomic
from iris_core.common.outages import wait_out
from iris_core.store import copies, uploads
from iris_core.store.folders import DIGESTS
from iris_core.store.folders import NEW as NEW

log = logging.getLogger(__name__)


class Units:
    """The units in a stage's folder. No two have the same name, also in different subfolders.

    Args:
        folder: the stage's folder.
        key: of their spec; units of another spec count as damaged.
        patience: seconds for which an outage of S3 is waited out.
    """

    def __init__(self, folder: Path, key: str, patience: float = 0.0):
        self.folder, self.key, self.patience = folder, key, patience

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A temporary path for the unit at `path`. It is moved there when the block ends without an error."""
        place = self.place(path)
        make_folder(place.parent)
        remove(place)
        yield place
        self.put(place, path)

    def place(self, path: Path) -> Path:
        """Where the unit at `path` is while it is written."""
        return self.folder / NEW / path.name

    def put(self, place: Path, path: Path) -> None:
        """Moves a unit from `place`, on the same disk, to `path`."""
        sync(place)
        make_folder(self.folder / DIGESTS)
        write_atomic(self._digest_file(path), self._digest(place))
        make_folder(path.parent)
        install(place, path)
        uploads.put_unit(self.folder, path, self.patience)

    def holds(self, path: Path) -> bool:
        """Whether the unit at `path` exists and is undamaged. A damaged one is named in the log and removed."""
        if (self._is_whole(path) and self._is_current(path)) or (self._pull(path) and self._is_whole(path)):
            return True
        if path.exists():
            log.warning("%s is damaged: it is redone", path)
            self.remove(path)
        remove(path)  # a dangling link
        return False

    def written(self, path: Path) -> Path:
        """The path of a unit that a worker says it has written; fetched from S3 if the worker is on another machine.

        Raises:
            StageFailed: it is missing or damaged.
        """
        if not self.holds(path):
            raise StageFailed(f"{path} is not there, or damaged, though a worker has written it: run again to resume")
        return path

    def remove(self, path: Path) -> None:
        """Removes the unit at `path` with its digest."""
        remove(path)
        remove(self._digest_file(path))
        uploads.remove_unit(self.folder, path)

    def _is_current(self, path: Path) -> bool:
        return uploads.is_running(self.folder) or wait_out(self.patience, lambda: copies.has_unit(self.folder, path))

    def _pull(self, path: Path) -> bool:
        return wait_out(self.patience, lambda: copies.pull_unit(self.folder, path))

    def _is_whole(self, path: Path) -> bool:
        try:
            return self._digest_file(path).read_text(encoding="utf-8") == self._digest(path)
        except (OSError, ValueError):
            return False

    def _digest_file(self, path: Path) -> Path:
        return self.folder / DIGESTS / path.name

    def _digest(self, path: Path) -> str:
        content = folder_digest(path) if path.is_dir() else file_digest(path)
        return json_digest([content, self.key])


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Removes from `folder` everything that is not in `names`: it would be read as a unit."""
    for path in folder.iterdir():
        if path.name not in names:
            log.warning("%s does not belong there: it is removed", path)
            remove(path)
