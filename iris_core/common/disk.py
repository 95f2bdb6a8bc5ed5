"""Full disks: checked before work starts, and reported as one error whichever library meets them."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iris_core.common.errors import StoreError

MIN_FREE_BYTES = 1 << 30
NOTHING_LEFT_BYTES = 1 << 20  # a database cannot be written with less
FULL = (errno.ENOSPC, errno.EDQUOT)  # error numbers
# the messages of the system and of SQLite, which other libraries pass on as text
PHRASES = ("no space left on device", "disk quota exceeded", "database or disk is full")


def check_free_space(folder: Path, needed: int = MIN_FREE_BYTES) -> None:
    """Raises StoreError if the disk of `folder` has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"the disk of {folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
            "free some space or set `store` to a folder on another disk"
        )


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Turns whatever a library raises because the disk is full into a StoreError.

    Args:
        folder: where the block writes.

    Raises:
        StoreError: the disk of `folder`, or that of temporary files, is full.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_full_disk(error, folder):
            raise
        places = (folder, Path(tempfile.gettempdir()))
        full = next((place for place in places if _is_full(place)), folder)
        raise StoreError(f"the disk of {full} is full: free some space, then run again to resume") from error


def _is_of_full_disk(error: BaseException | None, folder: Path) -> bool:
    """Whether `error`, or an error that it was raised from, comes from a full disk."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error).lower()
    if any(phrase in text for phrase in PHRASES):
        return True
    vague = type(error) is RuntimeError or "disk i/o error" in text  # torch and SQLite do not say why a write failed
    if vague and _is_full(folder):
        return True
    return _is_of_full_disk(error.__cause__ or error.__context__, folder)


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < NOTHING_LEFT_BYTES
    except OSError:
        return False
