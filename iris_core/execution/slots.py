"""A stage has its GPUs to itself: a lock file for each GPU of the machine, held until its last process has ended.

    with slots.held(["0", "1", "2"], 2, "train in /store/objects/train-6f3a", notify) as taken:
        ...  # start it with CUDA_VISIBLE_DEVICES=taken.gpus, and pass taken.descriptors on

The kernel releases a lock when the last process that has its descriptor ends, whatever ended it. The folder is one for
all users of the machine, and its name depends on no setting: whoever takes a GPU must look at the same file.
A stage takes all its GPUs at once or none, and holds none while it waits, so that two never wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from iris_core.common import gpus
from iris_core.common.errors import ConfigError
from iris_core.common.markup import one_line

SHARE_VARIABLE = "IRIS_SHARE_GPUS"  # set to 1: stages share GPUs, where two fit or a scheduler keeps them apart
FOLDER = Path("/tmp/iris-gpus")
LOOK_EVERY_S = 0.5
PURPOSE_BYTES = 200


@dataclass(frozen=True)
class Held:
    """The GPUs that a stage has.

    Attributes:
        gpus: their names, as CUDA_VISIBLE_DEVICES takes them.
        descriptors: of their locks; every process that inherits one keeps the lock.
    """

    gpus: list[str]
    descriptors: list[int]


@contextmanager
def held(names: Sequence[str], count: int, purpose: str, notify: Callable[[str], None]) -> Iterator[Held]:
    """Takes `count` of the GPUs `names`, those that are free first, and waits for them.

    Args:
        names: GPUs, as CUDA_VISIBLE_DEVICES names them; none on a machine without.
        count: how many are wanted; all of `names` if there are fewer.
        purpose: what for, in the messages of those who wait for them.
        notify: called with a message when it has to wait.

    Raises:
        ConfigError: the lock files cannot be used.
    """
    wanted = min(count, len(names))
    if os.environ.get(SHARE_VARIABLE) == "1":
        yield Held(list(names[:wanted]), [])
        return
    with ExitStack() as stack:
        yield _wait(stack, names, wanted, purpose, notify)


def users(names: Sequence[str]) -> dict[str, str]:
    """What uses those of the GPUs `names` that are in use, by their names. Looking creates no file."""
    found = {}
    for name in names:
        with suppress(OSError), open(_path(name), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # any user can write to the file
                found[name] = one_line(file.read(PURPOSE_BYTES).decode(errors="replace")) or "another stage"
    return found


def _wait(stack: ExitStack, names: Sequence[str], wanted: int, purpose: str, notify: Callable[[str], None]) -> Held:
    """Tries until it has the GPUs; says once why it cannot."""
    told = False
    while True:
        with ExitStack() as tried:
            found = _try(tried, names, wanted)
            if len(found) == wanted:
                stack.push(tried.pop_all())
                for descriptor in found.values():
                    _write(descriptor, f"{purpose} (process {os.getpid()})")
                return Held(list(found), list(found.values()))
        if not told and (busy := users(names)):
            notify("; ".join(f"GPU {name} is in use by {user}" for name, user in busy.items()) + ": waiting")
            told = True
        time.sleep(LOOK_EVERY_S * random.uniform(0.5, 1))  # two that wait must not meet again and again


def _try(stack: ExitStack, names: Sequence[str], wanted: int) -> dict[str, int]:
    """Takes up to `wanted` free GPUs, by name with the descriptors of their locks; `stack` closes those."""
    taken: dict[str, int] = {}
    for name in names:
        if len(taken) == wanted:
            break
        descriptor = _open(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            stack.callback(os.close, descriptor)
            taken[name] = descriptor
    return taken


def _open(name: str) -> int:
    """A new descriptor of a GPU's lock file, which every user can open.

    Raises:
        ConfigError: it cannot be opened.
    """
    path = _path(name)
    try:
        FOLDER.mkdir(exist_ok=True)
        with suppress(PermissionError):  # another user's, who has done this
            FOLDER.chmod(0o1777)
        # without O_CREAT where it is there: the kernel refuses it for files of others in such folders
        flags = os.O_RDWR | os.O_NOFOLLOW | (0 if path.exists() else os.O_CREAT)
        descriptor = os.open(path, flags, 0o666)
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o666)  # whatever the umask
    except OSError as error:
        raise ConfigError(
            f"{path}: the lock of GPU {name} cannot be used ({error.strerror}): remove {FOLDER}, or set "
            f"{SHARE_VARIABLE}=1 to let stages share GPUs"
        ) from error
    return descriptor


def _path(name: str) -> Path:
    return FOLDER / f"{identity(name)}.lock"


def identity(name: str) -> str:
    """The UUID of the GPU that CUDA_VISIBLE_DEVICES names `name`; the name itself where nvidia-smi does not know it."""
    gpu = gpus.find(name)
    return gpu["uuid"] if gpu else name


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
