"""Files that hold all of what was written or what they held before, whenever a process is killed or the power fails.

What counts is written beside its place, flushed to the disk with its folder, and renamed. Small JSON files carry a digest of
themselves, so that one that was damaged is not taken for one with another content.
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
    """A place to write to; what lies there when the block ends without an error replaces `path`, whatever that was."""
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
    """Renames a file, folder or link to `path`, flushed to the disk; what is there and cannot be replaced goes first."""
    if not temporary.is_symlink():
        sync(temporary)
    if _is_folder(path) or _is_folder(temporary):
        remove(path)
    temporary.replace(path)
    _flush(path.parent)


def sync(path: Path) -> None:
    """Flushes a file, or a folder with all in it, to the disk."""
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file() or _is_folder(inner):
                _flush(inner)
    _flush(path)


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder; nothing where there is none."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def make_folder(path: Path) -> None:
    """Makes the folder `path` if it is missing; a file or a dangling link in its place goes. Its parents are kept."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # and it is no folder
        path.unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)


def seal(content: dict[str, Any]) -> str:
    """`content` as JSON with a digest of itself."""
    return json.dumps({SEAL: json_digest(content), **content}, indent=1, ensure_ascii=False)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `seal` made the text of the file at `path` of; None if it is missing or damaged."""
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
    """What processes that were killed have left beside `path`."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        writer = leftover.name.rpartition(".")[2]
        if writer.isdigit() and not psutil.pid_exists(int(writer)):
            remove(leftover)
