"""Units of work: what a stage takes over from an earlier try, such as a shard, a checkpoint, the score of a benchmark.

    units = Units(out, spec.key())
    if not units.holds(path):                # missing or damaged: it is made (again)
        with units.writing(path) as place:
            write_parquet(place, table)

A unit is a file or a folder. Beside it, in `.digests`, lies the SHA-256 of its content and of the key of the spec that it was
made for; that is on the disk before the unit gets its name. So a unit that is there was whole, one that differs from its
digest was damaged since, and a kill at any point costs the unit that was being written.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from iris_core.common.digest import file_digest, folder_digest, json_digest
from iris_core.common.files import install, make_folder, remove, sync, write_atomic

DIGESTS = ".digests"
NEW = ".new"  # units that are being written

log = logging.getLogger(__name__)


class Units:
    """The units in a stage's folder. Their names differ, wherever in it they lie.

    Args:
        folder: the stage's folder.
        key: of the spec that they are made for; a unit made for another does not count.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Where to write the unit that belongs at `path`; it gets there when the block ends without an error."""
        place = self.folder / NEW / path.name
        make_folder(place.parent)
        remove(place)
        yield place
        self.put(place, path)

    def put(self, place: Path, path: Path) -> None:
        """Moves a unit that was written at `place`, on the same disk, to `path`."""
        sync(place)
        make_folder(self.folder / DIGESTS)
        write_atomic(self._mark(path), self._seal(place))
        install(place, path)

    def holds(self, path: Path) -> bool:
        """Whether the unit at `path` is there and whole. One that is not is named in the log and removed."""
        if not path.exists():
            remove(path)  # a dangling link
            return False
        try:
            whole = self._mark(path).read_text(encoding="utf-8") == self._seal(path)
        except (OSError, ValueError):
            whole = False
        if not whole:
            log.warning("%s is damaged: it is redone", path)
            self.remove(path)
        return whole

    def remove(self, path: Path) -> None:
        """Removes the unit at `path` with its digest."""
        remove(path)
        remove(self._mark(path))

    def _mark(self, path: Path) -> Path:
        return self.folder / DIGESTS / path.name

    def _seal(self, path: Path) -> str:
        content = folder_digest(path) if path.is_dir() else file_digest(path)
        return json_digest([content, self.key])


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Removes from `folder` what is not called like one of its units: it would be read with them."""
    for path in folder.iterdir():
        if path.name not in names:
            log.warning("%s does not belong there: it is removed", path)
            remove(path)
