"""A stage on several devices of one machine: one process a device, called a rank; all work on the same spec.

The stage's own process is rank 0. It starts the others, ends when all have ended, and alone writes to the store and
reports; no rank outlives it. Generation needs no more (`ranks`). Training is data-parallel (`process_group`): all ranks
hold the same weights and take the same steps, each with its share of an optimiser batch's rows. Log-probabilities and
gradients are summed over the ranks, so that a batch, its normaliser and its metrics are those of one process.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from iris_core.common.errors import StageFailed
from iris_core.common.files import remove, write_atomic
from iris_core.common.progress import FD_VARIABLE
from iris_core.execution import supervision
from iris_core.execution.failure import abort
from iris_core.store import Spec
from iris_core.store.folders import WORK

if TYPE_CHECKING:
    from torch import Tensor

RANK, WORLD_SIZE, RANK_0 = "IRIS_RANK", "IRIS_RANKS", "IRIS_RANK_0"  # the last is rank 0's process id
TIMEOUT = datetime.timedelta(days=1)  # ranks wait for rank 0 while it scores and saves


def rank() -> int:
    """This process's rank; 0 where there are no others."""
    return int(os.environ.get(RANK, "0"))


def world_size() -> int:
    """How many ranks the process group has; 1 without one."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def requested_ranks(spec: Spec) -> int:
    """How many ranks to run: the variable IRIS_RANKS, else `execution.processes`, else one for each GPU."""
    import torch

    requested = os.environ.get(WORLD_SIZE) or spec.execution.processes or torch.cuda.device_count()
    return max(1, int(requested))


@contextmanager
def ranks(spec: Spec, out: Path, count: int) -> Iterator[None]:
    """Starts the other ranks if this is rank 0; ends when all have ended. If the block raises, none is left.

    A rank that fails ends this process with its exit code.

    Args:
        spec: what all of them work on.
        out: the stage's folder, which holds its `work`.
        count: how many, this process included.
    """
    others = [_start(spec, out, number, count) for number in range(1, count)] if not rank() else []
    over = threading.Event()
    watches = [
        threading.Thread(target=_watch, args=(spec.stage, number, process, over), daemon=True)
        for number, process in enumerate(others, start=1)
    ]
    for watch in watches:
        watch.start()
    try:
        yield
        for watch in watches:
            watch.join()
    finally:
        over.set()
        for process in others:
            if process.poll() is None:
                supervision.kill_tree(process.pid)
                process.wait()


@contextmanager
def process_group(spec: Spec, out: Path, count: int) -> Iterator[None]:
    """Runs the block on `count` ranks that can exchange tensors (torch.distributed); arguments as of `ranks`."""
    if count == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    rendezvous = out / WORK / "rendezvous"
    if rank() == 0:
        remove(rendezvous)
    with ranks(spec, out, count):
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank(),
            world_size=count,
            timeout=TIMEOUT,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


def end_with_rank_0() -> None:
    """From now on this process is killed as soon as rank 0 is gone, whatever ended it."""
    supervision.end_with_parent(int(os.environ[RANK_0]))


def barrier() -> None:
    """Waits until every rank is here."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.barrier()


def all_reduce(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over the ranks, in one exchange.

    Args:
        tensors: of any shapes, of one dtype; the same shapes on every rank.
    """
    import torch
    import torch.distributed as dist

    if world_size() == 1:
        return
    parts = list(tensors)
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))


def _start(spec: Spec, out: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    """Starts rank `number` on its own device, without the progress pipe."""
    request = out / WORK / "ranks.json"
    write_atomic(request, spec.model_dump_json())
    environment = {name: value for name, value in os.environ.items() if name != FD_VARIABLE}
    environment |= {RANK: str(number), WORLD_SIZE: str(count), RANK_0: str(os.getpid())}
    environment["CUDA_VISIBLE_DEVICES"] = _device(number)
    command = [sys.executable, "-m", f"iris_core.{spec.stage}", "--spec", str(request), "--out", str(out)]
    return subprocess.Popen(command, env=environment)


def _device(number: int) -> str:
    """The device that rank `number` sees; none where this process sees none."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return visible.split(",")[number] if count else ""


def _watch(stage: str, number: int, process: subprocess.Popen[bytes], over: threading.Event) -> None:
    """Ends this process, which would wait forever, with the exit code of a rank that failed before all was `over`."""
    code = process.wait()
    if code and not over.is_set():
        message = f"rank {number} of the stage {stage} {supervision.how_ended(code)}"
        error = StageFailed(f"{message}: the log has its error; run again to resume")
        abort(error, code if code > 0 else error.exit_code)
