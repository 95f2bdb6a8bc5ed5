"""A stage on several devices of one machine: a process each, which work on the same spec.

The stage's own process is rank 0. It starts the others, ends when all have ended, and alone keeps the store and reports;
no rank outlives it. Generation needs no more (`members`). Training is data-parallel (`team`): all hold the same weights
and take the same steps, each with its share of an optimiser batch's rows; log-probabilities and gradients are added up
over the ranks, so that a batch, its normaliser and its metrics are those of one process.
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

from iris_core.common import progress
from iris_core.common.files import remove, write_atomic
from iris_core.common.progress import FD_VARIABLE
from iris_core.execution import supervision
from iris_core.store import Spec
from iris_core.store.folders import WORK

if TYPE_CHECKING:
    from torch import Tensor

RANK, SIZE, LEADER = "IRIS_RANK", "IRIS_RANKS", "IRIS_RANK_0"  # the last is rank 0's process id
PATIENCE = datetime.timedelta(days=1)  # ranks wait for rank 0 while it scores and saves


def rank() -> int:
    """This process's number in its team; 0 where there is no team."""
    return int(os.environ.get(RANK, "0"))


def size() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def wanted(spec: Spec) -> int:
    """How many processes the spec asks for: `execution.processes`, else one for each GPU."""
    import torch

    asked = os.environ.get(SIZE) or spec.execution.get("processes") or torch.cuda.device_count()
    return max(1, int(asked))


@contextmanager
def members(spec: Spec, out: Path, count: int) -> Iterator[None]:
    """Starts the other ranks where this is rank 0; ends when all have ended, and none is left if the block raises.

    A rank that fails ends this process with its code.

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
                supervision.end_tree(process.pid)
                process.wait()


@contextmanager
def team(spec: Spec, out: Path, count: int) -> Iterator[None]:
    """Joins this process with the other `members` in a group whose tensors can be added up."""
    if count == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    meeting = out / WORK / "meeting"
    if rank() == 0:
        remove(meeting)
    with members(spec, out, count):
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"file://{meeting}",
            rank=rank(),
            world_size=count,
            timeout=PATIENCE,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


def end_with_rank_0() -> None:
    """From now on this process ends as soon as rank 0 is gone, however it went."""
    supervision.end_with_parent(int(os.environ[LEADER]))


def wait() -> None:
    """Until every rank is here."""
    import torch.distributed as dist

    if size() > 1:
        dist.barrier()


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over the ranks, all of them in one exchange."""
    import torch
    import torch.distributed as dist

    if size() == 1:
        return
    parts = list(tensors)
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))


def _start(spec: Spec, out: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    """Starts rank `number` on its own device, with nothing to report to."""
    request = out / WORK / "team.json"
    write_atomic(request, spec.model_dump_json())
    environment = {name: value for name, value in os.environ.items() if name != FD_VARIABLE}
    environment |= {RANK: str(number), SIZE: str(count), LEADER: str(os.getpid())}
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
    """Ends this process, which would wait for ever, with the code of a rank that failed before all was `over`."""
    code = process.wait()
    if code and not over.is_set():
        message = (
            f"rank {number} of the stage {stage} ended with code {code}: the log has its error; run again to resume"
        )
        progress.emit("error", kind="StageFailed", message=message, exit_code=code)
        os._exit(code if code > 0 else 70)
