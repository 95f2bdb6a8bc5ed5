"""What lies in a stage's folder: what may be hidden in it, what has changed in it, and what is left over from a kill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from iris_core.common.digest import file_digest
from iris_core.common.files import remove, sync
from iris_core.store.units import DIGESTS

WORK = "work"
LOCK = ".lock"
EXECUTION = ".execution.json"  # how the next try of the stage is to run
HIDDEN = (LOCK, EXECUTION, DIGESTS)  # all else that is hidden is left over from a kill


def kept_files(folder: Path) -> list[str]:
    """The files that a stage has produced, by name relative to its folder: neither hidden nor in `work`."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [str(name) for name in names if name.parts[0] != WORK and name.parts[0][0] != "."]


def flush(folder: Path) -> None:
    """Flushes what a stage has produced to the disk."""
    for path in folder.iterdir():
        if path.name != WORK and path.name[0] != ".":
            sync(path)


def changed(folder: Path, files: Mapping[str, tuple[int, str]], outputs: Iterable[str]) -> list[Path]:
    """What is missing or differs from what is known, and files in the folders among the outputs that are not known.

    Args:
        folder: the stage's folder.
        files: size and SHA-256 of each file, by name relative to it.
        outputs: files and folders that later stages take, likewise.
    """
    differing = [folder / name for name, known in files.items() if not _is(folder / name, *known)]
    found = {path for output in outputs for path in (folder / output).rglob("*")}
    unknown = found - {folder / name for name in files}
    return differing + sorted(path for path in unknown if not path.is_dir())


def tidy(folder: Path, names: Iterable[str]) -> None:
    """Removes from the folder of a complete stage what only its work needed.

    Args:
        folder: the stage's folder.
        names: of its files.
    """
    remove(folder / WORK)
    remove_leftovers(folder)
    kept = {Path(name).name for name in names}
    for mark in (folder / DIGESTS).glob("*"):
        if mark.name not in kept:
            remove(mark)


def remove_leftovers(folder: Path) -> None:
    """Removes what stages that were killed have left in their folder."""
    for path in folder.glob(".*"):
        if path.name not in HIDDEN:
            remove(path)


def _is(path: Path, size: int, digest: str) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size and file_digest(path) == digest
    except OSError:  # the disk does not give it back
        return False
