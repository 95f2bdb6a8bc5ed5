"""The files in a stage's folder: which are output, which have changed, and which a killed run has left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from iris_core.common.digest import file_digest
from iris_core.common.files import remove, sync

OBJECTS = "objects"  # in a store: the folder of all stages' folders
MANIFEST = "manifest.json"
WORK = "work"
LOCK = ".lock"
EXECUTION = ".execution.json"  # execution settings for the next try of the stage
DIGESTS = ".digests"  # of units
NEW = ".new"  # the folder of units that are being written
LINKS = ".push"  # the folder of units that are being uploaded
HIDDEN = (LOCK, EXECUTION, DIGESTS)  # other hidden files are left over from killed runs


def kept_files(folder: Path) -> list[str]:
    """The output files of a stage, relative to its folder: neither hidden nor in `work`."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [str(name) for name in names if name.parts[0] != WORK and name.parts[0][0] != "."]


def flush(folder: Path) -> None:
    """Flushes the output of a stage to the disk."""
    for path in folder.iterdir():
        if path.name != WORK and path.name[0] != ".":
            sync(path)


def changed(folder: Path, files: Mapping[str, tuple[int, str]], outputs: Iterable[str]) -> list[Path]:
    """Files that are missing or differ from `files`, and files in output folders that are not in `files`.

    Args:
        folder: the stage's folder.
        files: size and SHA-256 of each file, by name relative to it.
        outputs: files and folders that later stages take, relative to it.
    """
    differing = [folder / name for name, known in files.items() if not _is(folder / name, *known)]
    found = {path for output in outputs for path in (folder / output).rglob("*")}
    unknown = found - {folder / name for name in files}
    return differing + sorted(path for path in unknown if not path.is_dir())


def tidy(folder: Path, names: Iterable[str]) -> None:
    """Removes from the folder of a complete stage what only the running stage needed.

    Args:
        folder: the stage's folder.
        names: its files, relative to the folder.
    """
    remove(folder / WORK)
    remove_leftovers(folder)
    kept = {Path(name).name for name in names}
    for digest in (folder / DIGESTS).glob("*"):
        if digest.name not in kept:
            remove(digest)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs of a stage have left in its folder."""
    for path in folder.glob(".*"):
        if path.name not in HIDDEN:
            remove(path)


def _is(path: Path, size: int, digest: str) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size and file_digest(path) == digest
    except OSError:  # the disk cannot read it
        return False
