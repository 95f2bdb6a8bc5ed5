"""Data-parallel training on one machine: a process a device, each with its share of an optimiser batch's rows.

The stage's own process is rank 0. It starts the others on the same spec; it alone writes and reports. All of them hold the
same weights and take the same steps: log-probabilities and gradients are added up over the ranks, so that a batch, its
normaliser and its metrics are those of one process.
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

from iris_core import progress
from iris_core.progress import FD_VARIABLE, LEASH_VARIABLE
from iris_core.store import WORK, Spec

if TYPE_CHECKING:
    from torch import Tensor

RANK, SIZE = "IRIS_RANK", "IRIS_RANKS"
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
def team(spec: Spec, out: Path, members: int) -> Iterator[None]:
    """Joins this process with the others, which rank 0 starts; ends when all have ended.

    Args:
        spec: what all of them work on.
        out: the stage's folder.
        members: how many, this process included.
    """
    if members == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    meeting, others = out / WORK / "meeting", []
    if rank() == 0:
        meeting.unlink(missing_ok=True)
        others = [_start(spec, out, number, members) for number in range(1, members)]
        for number, process in enumerate(others, start=1):
            threading.Thread(target=_watch, args=(number, process), daemon=True).start()
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{meeting}", rank=rank(), world_size=members, timeout=PATIENCE,
    )  # fmt: skip
    try:
        yield
    finally:
        dist.destroy_process_group()
    for process in others:
        process.wait()


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


def _start(spec: Spec, out: Path, number: int, members: int) -> subprocess.Popen[bytes]:
    """Starts rank `number` on its own device, with nothing to report to."""
    request = out / WORK / "team.json"
    request.write_text(spec.model_dump_json(), encoding="utf-8")
    hidden = (FD_VARIABLE, LEASH_VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {RANK: str(number), SIZE: str(members)}
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    environment["CUDA_VISIBLE_DEVICES"] = devices.split(",")[number] if devices else str(number)
    command = [sys.executable, "-m", f"iris_core.{spec.stage}", "--spec", str(request), "--out", str(out)]  # fmt: skip
    return subprocess.Popen(command, env=environment)


def _watch(number: int, process: subprocess.Popen[bytes]) -> None:
    """Ends this process, which would wait for ever, with the code of a rank that failed."""
    code = process.wait()
    if code:
        message = f"rank {number} of the training team ended with code {code}: the log has its error; run again to resume"
        progress.emit("error", kind="StageFailed", message=message, exit_code=code)
        os._exit(code if code > 0 else 70)
