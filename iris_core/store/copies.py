"""The copy in a bucket of a stage's folder, for stores that are kept in S3: what is read from it.

The bucket is the truth; a machine's mirror (`iris_core.common.mirrors`) may be deleted while no run uses it. The names
are those of a local store. Of each stage's folder:

- The manifest is written last, once, on the condition that there is none (`iris_core.store.uploads`).
- The digest of a unit is written after the unit.
- Only the holder of the folder's lease writes or removes anything.
- What arrives here has the SHA-256 that the manifest or the unit's digest says, or it counts as missing.

In a local store every function here does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import filelock

from iris_core.common import mirrors
from iris_core.common.digest import file_digest
from iris_core.common.files import install, make_folder, read_sealed, remove, write_atomic
from iris_core.store.folders import DIGESTS, LINKS, MANIFEST, NEW, OBJECTS, changed
from iris_core.store.remote import Missing, Remote, remote

PULLS = ".pull"  # in a mirror: locks of what is being fetched

log = logging.getLogger(__name__)

Files = Mapping[str, tuple[int, str]]  # size and SHA-256, by name relative to the stage's folder


class Copy(NamedTuple):
    """A stage's folder in a mirror, and the name of its copy in the bucket."""

    folder: Path
    remote: Remote
    name: str

    @property
    def uri(self) -> str:
        """Of the copy."""
        return f"{self.remote.uri}/{self.name}"


def copy_of(folder: Path) -> Copy | None:
    """The copy of a stage's folder; None in a local store."""
    found = mirrors.split(folder.absolute())
    if found is None or found[1] != f"{OBJECTS}/{folder.name}":
        return None
    uri = mirrors.uri_of(found[0])
    assert uri is not None
    return Copy(folder.absolute(), remote(uri), found[1])


def adopt_manifest(folder: Path) -> bool:
    """Makes the manifest in `folder` that of the copy. False if the copy has none; True in a local store.

    Raises:
        ServiceError: the bucket's server does not answer.
    """
    copy = copy_of(folder)
    if copy is None:
        return True
    found = copy.remote.read(f"{copy.name}/{MANIFEST}")
    if found is None:
        return False
    file = folder / MANIFEST
    if not file.is_file() or file.read_bytes() != found.content:
        make_folder(folder)
        write_atomic(file, found.content.decode(errors="replace"))  # a damaged one has no seal
    return True


def restore(folder: Path, files: Files, differing: Iterable[Path]) -> bool:
    """Replaces files that are missing or have changed by those of the copy, and removes files that it does not have.

    Args:
        folder: the stage's folder.
        files: of its manifest.
        differing: what `iris_core.store.folders.changed` found.

    Returns:
        Whether all are as the manifest says; False in a local store.
    """
    copy = copy_of(folder)
    if copy is None:
        return False
    names = [path.relative_to(folder).as_posix() for path in differing]
    for name in names:
        remove(folder / name)
    known = [name for name in names if name in files]
    size = sum(files[name][0] for name in known)
    log.info("fetching %d files, %.1f MB, of %s", len(known), size / 1e6, copy.uri)
    try:
        copy.remote.download((f"{copy.name}/{name}", folder / name) for name in known)
    except Missing:
        log.warning("%s lacks files that its manifest names", copy.uri)
        return False
    damaged = [name for name in known if file_digest(folder / name) != files[name][1]]
    for name in damaged:
        log.warning("%s/%s is damaged", copy.uri, name)
        remove(folder / name)
    return not damaged


def fetch(path: Path) -> bool:
    """Brings the file or folder `path` of a complete stage's folder here, or the changed files in it.

    Returns:
        Whether the copy had it; False in a local store.

    Raises:
        ServiceError: the bucket's server does not answer.
    """
    if (found := _in_stage(path)) is None:
        return False
    folder, inside = found
    with _alone(folder):
        if not adopt_manifest(folder):
            return False
        files = _files(folder, inside)
        return inside == MANIFEST or (bool(files) and restore(folder, files, changed(folder, files, [inside])))


def seems_here(path: Path) -> bool:
    """Whether all files of `path` are here with their sizes: a fast check, for stages verify what they read."""
    found = _in_stage(path)
    if found is None or found[1] == MANIFEST:
        return path.exists()
    folder, inside = found
    sizes = {folder / name: size for name, (size, _) in _files(folder, inside).items()}
    return bool(sizes) and all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())


def pull_unit(folder: Path, path: Path) -> bool:
    """Brings the unit at `path` here. The caller checks it against its digest, which comes with it.

    Returns:
        Whether the copy has it; False in a local store.

    Raises:
        ServiceError: the bucket's server does not answer.
    """
    copy = copy_of(folder)
    if copy is None:
        return False
    digest = copy.remote.read(f"{copy.name}/{DIGESTS}/{path.name}")
    if digest is None:
        return False
    inside = path.absolute().relative_to(copy.folder).as_posix()
    names = [name for name in copy.remote.names(copy.name) if _is_inside(name, inside)]
    place = folder / NEW / path.name
    remove(place)
    try:
        copy.remote.download((f"{copy.name}/{name}", folder / NEW / _below(inside, name)) for name in names)
    except Missing:
        return False
    if names:
        make_folder(folder / DIGESTS)
        write_atomic(folder / DIGESTS / path.name, digest.content.decode(errors="replace"))
        make_folder(path.parent)
        install(place, path)
    return bool(names)


def has_unit(folder: Path, path: Path) -> bool:
    """Whether the copy has the unit at `path` with the digest that it has here; True in a local store.

    Raises:
        ServiceError: the bucket's server does not answer.
    """
    copy = copy_of(folder)
    return copy is None or _has_unit(copy, path.name)


def pull_units(folder: Path) -> set[str]:
    """Brings the complete units of the copy here; those that are here with the same digest are not fetched again.

    Returns:
        The names of all units of the copy; none in a local store.

    Raises:
        ServiceError: the bucket's server does not answer.
    """
    copy = copy_of(folder)
    names = [Path(name) for name in copy.remote.names(copy.name)] if copy else []
    units = {name.name for name in names if name.parts[0] == DIGESTS}
    for path in {unit_path(folder, name, units) for name in names} - {None}:
        assert copy is not None
        assert path is not None
        if not (path.exists() and _has_unit(copy, path.name)):
            pull_unit(folder, path)
    return units


def unit_path(folder: Path, name: Path, units: Collection[str]) -> Path | None:
    """The path of the unit that the file `name` belongs to; None if it is of none of `units`."""
    parts = name.parts
    if parts[0] in (DIGESTS, LINKS, NEW):
        return None
    return next((folder.joinpath(*parts[: i + 1]) for i, part in enumerate(parts) if part in units), None)


def _has_unit(copy: Copy, name: str) -> bool:
    here, there = copy.folder / DIGESTS / name, copy.remote.read(f"{copy.name}/{DIGESTS}/{name}")
    return there is not None and here.is_file() and here.read_bytes() == there.content


def _in_stage(path: Path) -> tuple[Path, str] | None:
    """The folder of the stage that `path` is in, and its name relative to that; None outside a mirror."""
    found = mirrors.split(path)
    parts = Path(found[1]).parts if found else ()
    if found is None or len(parts) < 3 or parts[0] != OBJECTS:
        return None
    return found[0].joinpath(*parts[:2]), "/".join(parts[2:])


def _files(folder: Path, inside: str) -> Files:
    """The files at or below `inside` according to the manifest in `folder`."""
    known = (read_sealed(folder / MANIFEST) or {}).get("files", {})
    return {name: (size, digest) for name, (size, digest) in known.items() if _is_inside(name, inside)}


def _is_inside(name: str, inside: str) -> bool:
    return name == inside or name.startswith(f"{inside}/")


def _below(inside: str, name: str) -> str:
    """`name`, a file at or below `inside`, relative to the folder that `inside` is in."""
    return name[len(inside) - len(Path(inside).name) :]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process of this machine fetch from a stage's folder; the others find it fetched."""
    locks = folder.parents[1] / PULLS
    make_folder(locks)
    with filelock.FileLock(locks / f"{folder.name}.lock"):
        yield
