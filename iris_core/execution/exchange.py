"""Files of a stage between the machines of its ranks, where these see no common folder, as with a store in S3.

    spread(out, path)      # every machine has what rank 0's has at `path`
    gather(out, place)     # rank 0's machine has what the ranks of all machines have written below `place`

All ranks call these together, as a barrier. Rank 0's machine alone exchanges files with the store.
"""

from __future__ import annotations

import functools
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from iris_core.common import mirrors
from iris_core.common.errors import StoreError
from iris_core.common.files import install, make_folder, remove
from iris_core.execution import distributed
from iris_core.store.folders import NEW

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

CHUNK = 16 * 2**20  # bytes in a message
RECEIVED = "received"  # what arrives, in the folder of units that are being written


def spread(out: Path, path: Path, group: ProcessGroup | None = None) -> None:
    """Makes `path` on each machine what it is on rank 0's: a file, a folder, or nothing.

    Args:
        out: the stage's folder on this machine.
        path: in it.
        group: of all ranks, to exchange by; None: the default one.

    Raises:
        StoreError: a machine does not see rank 0's folder, and the store is not in S3.
    """
    distributed.barrier(group)
    for rank in machines_apart(out):
        distributed.together(functools.partial(_hand_out, out, path, rank, group), group)


def gather(out: Path, place: Path, group: ProcessGroup | None = None) -> None:
    """Moves what ranks on other machines have written below `place` to rank 0's machine.

    Args:
        out: the stage's folder on this machine.
        place: a folder in it; no two machines have written files of the same name.
        group: as in `spread`.
    """
    distributed.barrier(group)
    for rank in machines_apart(out):
        distributed.together(functools.partial(_hand_in, place, rank, group), group)


def forget(out: Path) -> None:
    """Removes the stage's folder from the machines apart: what is in it has served the running stage only."""
    if distributed.rank() in machines_apart(out):
        remove(out)


def machines_apart(out: Path) -> tuple[int, ...]:
    """The first rank of each machine that does not see rank 0's folder of the stage; all ranks ask this together.

    Raises:
        StoreError: there is one, and the store is not in S3.
    """
    if distributed.world_size() == 1:
        return ()
    found = _machines_apart(out)
    if found and mirrors.split(out) is None:
        raise StoreError(
            f"{socket.gethostname()}: the machines of these ranks do not see one folder {out}: mount one POSIX file "
            "system at this path on every machine, or set `store` to s3://bucket/prefix"
        )
    return found


@functools.cache
def _machines_apart(out: Path) -> tuple[int, ...]:
    import torch

    file = out / NEW / f"{distributed.agreed(secrets.randbits(62)):x}"
    if distributed.rank() == 0:
        make_folder(file.parent)
        file.touch()
    distributed.barrier()
    apart = torch.zeros(distributed.world_size(), dtype=torch.int64)
    apart[distributed.rank()] = distributed.local_rank() == 0 and not file.exists()
    distributed.all_reduce(apart)
    if distributed.rank() == 0:
        remove(file)
    return tuple(rank for rank, alone in enumerate(apart.tolist()) if alone)


def _hand_out(out: Path, path: Path, to: int, group: ProcessGroup | None) -> None:
    """Sends `path` from rank 0 to the rank `to`; nothing on the others, which wait for their turn."""
    if distributed.rank() == 0:
        _send(path.parent, path, to, group)
    elif distributed.rank() == to:
        received = out / NEW / RECEIVED
        remove(received)
        _receive(received, 0, group)
        remove(path)
        if (received / path.name).exists():
            make_folder(path.parent)
            install(received / path.name, path)


def _hand_in(place: Path, of: int, group: ProcessGroup | None) -> None:
    """Moves what the rank `of` has below `place` to rank 0."""
    if distributed.rank() == 0:
        _receive(place.parent, of, group)
    elif distributed.rank() == of:
        _send(place.parent, place, 0, group)
        remove(place)


def _send(base: Path, path: Path, rank: int, group: ProcessGroup | None) -> None:
    """Sends the file `path`, or the files below it: their names relative to `base` with their sizes, then each."""
    import torch.distributed as dist

    files = [file for file in (path, *sorted(path.rglob("*"))) if file.is_file()]
    names = json.dumps([(file.relative_to(base).as_posix(), file.stat().st_size) for file in files]).encode()
    dist.send(_tensor(len(names).to_bytes(8)), rank, group)
    dist.send(_tensor(names), rank, group)
    for file in files:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                dist.send(_tensor(chunk), rank, group)


def _receive(base: Path, rank: int, group: ProcessGroup | None) -> None:
    """Writes the files that a rank sends below `base`."""
    length = int.from_bytes(b"".join(_chunks(8, rank, group)))
    for name, size in json.loads(b"".join(_chunks(length, rank, group))):
        make_folder((base / name).parent)
        with (base / name).open("wb") as file:
            file.writelines(_chunks(size, rank, group))


def _chunks(size: int, rank: int, group: ProcessGroup | None) -> Iterator[bytes]:
    import torch
    import torch.distributed as dist

    while size > 0:
        chunk = torch.empty(min(size, CHUNK), dtype=torch.uint8)
        dist.recv(chunk, rank, group)
        yield chunk.numpy().tobytes()
        size -= len(chunk)


def _tensor(content: bytes) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
