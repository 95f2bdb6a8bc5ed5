"""Atomic writes: a file holds all that was written or what it held before, even when the process or the power fails.

Content is written to a temporary file in the same folder, flushed to the disk, and renamed. Small JSON files carry a
digest of their own content, so that damage is detected.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from iris_core.common.digest import json_digest

SEAL = "digest"  # the key of a sealed file's own digest


def write_atomic(path: Path, text: str) -> None:
    """Writes `text` so that `path` holds either all of it or what it held before."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to. What the block leaves there replaces `path`, unless the block raises an error."""
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    remove(temporary)
    try:
        yield temporary
        install(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def install(temporary: Path, path: Path) -> None:
    """Renames a file, folder or link to `path` and flushes it to the disk. A folder at `path` is removed first."""
    if not temporary.is_symlink():
        sync(temporary)
    if _is_folder(path) or _is_folder(temporary):
        remove(path)
    temporary.replace(path)
    _flush(path.parent)


def sync(path: Path) -> None:
    """Flushes a file, or a folder and everything in it, to the disk."""
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file() or _is_folder(inner):
                _flush(inner)
    _flush(path)


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder. Does nothing if there is none."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def make_folder(path: Path) -> None:
    """Makes the folder `path` if it is missing. A file or a dangling link at `path` is removed; its parents are not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # and it is no folder
        path.unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)


def seal(content: dict[str, Any]) -> str:
    """`content` as JSON with its own digest."""
    return json.dumps({SEAL: json_digest(content), **content}, indent=1, ensure_ascii=False)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The content that `seal` wrote to the file at `path`; None if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if content.pop(SEAL) == json_digest(content) else None
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files for `path` of processes that no longer exist."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        writer = leftover.name.rpartition(".")[2]
        if writer.isdigit() and not psutil.pid_exists(int(writer)):
            remove(leftover)
