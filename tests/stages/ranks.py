"""A stage for tests of ranks: they add up their numbers, or one of them does what its spec says."""

from __future__ import annotations

import datetime
import json
import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from iris_core.common.errors import DataError
from iris_core.common.progress import Progress
from iris_core.execution import distributed
from iris_core.execution.stage import main
from iris_core.store import Artifact, Metrics, Outcome, Spec
from iris_core.store.folders import WORK

SLOW_S = 10.0
distributed.EXCHANGE = datetime.timedelta(seconds=float(os.environ.get("TEST_EXCHANGE_S", "600")))


class RanksSpec(Spec):
    stage: ClassVar[str] = "ranks"
    has_ranks: ClassVar[bool] = True
    action: str
    who: int = 1  # the rank that does it
    source: Artifact | None = None


class RanksMetrics(Metrics):
    total: float
    ranks: int
    threads: str | None


def work(spec: RanksSpec, out: Path) -> Outcome:
    import torch

    number = distributed.rank()
    print(f"{spec.action} in rank {number}")
    total = torch.tensor([10.0**number])
    distributed.all_reduce(total)
    if spec.action == "together":
        be_slow(out)
    elif spec.who == number:
        act(spec.action)
    if spec.action == "endless" and not (out / "second").exists():
        go_on(out)
    distributed.barrier()
    Progress("ranks", total=1).advance()
    (out / "sum.json").write_text(json.dumps(total.tolist()))
    metrics = RanksMetrics(
        total=total.item(), ranks=distributed.world_size(), threads=os.environ.get("OMP_NUM_THREADS")
    )
    return Outcome(outputs={"sum": out / "sum.json"}, metrics=metrics)


def act(action: str) -> None:
    if action == "refuse":
        raise DataError("data.path: no rows: give some")
    if action == "crash":
        raise ZeroDivisionError("of a bug")
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def be_slow(out: Path) -> None:
    """Rank 1 is slower than the time limit of an exchange."""
    distributed.EXCHANGE = datetime.timedelta(seconds=SLOW_S / 2)
    group = distributed.new_group()
    assert distributed.together(distributed.rank, group) == distributed.rank()
    distributed.together(lambda: time.sleep(SLOW_S * distributed.rank()), group)
    (out / "slow").touch()
    if distributed.rank():
        time.sleep(SLOW_S)
    distributed.barrier(group)


def go_on(out: Path) -> None:
    """Exchanges something for ever."""
    (out / WORK).mkdir(exist_ok=True)
    while True:
        distributed.barrier()
        (out / WORK / f"rank-{distributed.rank()}").touch()
        time.sleep(0.05)


if __name__ == "__main__":
    main(RanksSpec, work)
