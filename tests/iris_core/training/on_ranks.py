"""Trains specs one after another in one set of ranks: starting the ranks takes longer than a tiny training.

python -m torch.distributed.run … -m tests.iris_core.training.on_ranks jobs.json
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from iris_core.modeling.patches.imports import UNUSED, begin_imports

if __name__ == "__main__":
    begin_imports(UNUSED)

from iris_core.common.ports import free_port
from iris_core.execution import distributed
from iris_core.execution.launch import ONE_MACHINE
from iris_core.pipeline.specs import TrainSpec
from iris_core.train import train
from iris_core.training import saving
from iris_core.training import trainer as trainer_module
from iris_core.training.trainer import SelfPlayTrainer
from tests.processes import PATIENCE_S


class Job(NamedTuple):
    """A training.

    Attributes:
        spec: of the stage.
        out: its folder.
        stop: the step before which it ends.
        killed_at: the step whose checkpoint rank 1 is killed at, when it has written its part.
        overlapping: whether steps are taken while a checkpoint is written, as on GPUs.
    """

    spec: TrainSpec
    out: Path
    stop: int | None = None
    killed_at: int | None = None
    overlapping: bool = False


def run(jobs: Sequence[Job], ranks: int, file: Path, machines: int = 1) -> None:
    """Does `jobs` in this process, or on several ranks of each machine that read them from `file`."""
    if ranks * machines == 1:
        work_through(jobs)
        return
    file.write_text(json.dumps([[job.spec.model_dump_json(), str(job.out), *job[2:]] for job in jobs]))
    command = [*torchrun(ranks, machines), "-m", __name__, str(file)]
    others = [subprocess.Popen(command) for _ in range(machines - 1)]
    try:
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        assert [agent.wait(PATIENCE_S) for agent in others] == [0] * len(others)
    finally:
        for agent in others:
            agent.kill()


def torchrun(ranks: int, machines: int = 1) -> list[str]:
    """The command that starts ranks on this machine, whose name may have no address; it runs once for each machine."""
    meet = ("--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    several = ("--nnodes", str(machines), "--local-addr", "127.0.0.1", *meet)
    meeting = several if machines > 1 else ONE_MACHINE
    return [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(ranks)]


def work_through(jobs: Sequence[Job]) -> None:
    """Does `jobs` in this process, which is one of the ranks."""
    step, overlaps = SelfPlayTrainer.training_step, trainer_module.overlaps
    for job in jobs:

        def step_or_stop(self, *arguments, stop=job.stop, **options):
            if self.state.global_step == stop:
                raise KeyboardInterrupt
            return step(self, *arguments, **options)

        SelfPlayTrainer.training_step = step_or_stop
        trainer_module.overlaps = lambda device, job=job: job.overlapping
        try:
            with killed_at(job.killed_at):
                train(job.spec, job.out)
        except KeyboardInterrupt:
            continue
        finally:
            SelfPlayTrainer.training_step, trainer_module.overlaps = step, overlaps


@contextmanager
def killed_at(step: int | None) -> Iterator[None]:
    """Rank 1 ends inside when it has written its part of the checkpoint of `step`."""
    write = saving.write_states

    def write_and_die(checkpoint: Path, *arguments):
        write(checkpoint, *arguments)
        if distributed.rank() == 1 and checkpoint.name == f"checkpoint-{step}":
            os.kill(os.getpid(), signal.SIGKILL)

    saving.write_states = write_and_die
    try:
        yield
    finally:
        saving.write_states = write


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    content = json.loads(Path(sys.argv[1]).read_text())
    read = [Job(TrainSpec.model_validate_json(spec), Path(out), *rest) for spec, out, *rest in content]
    distributed.all_ranks(lambda work: work(), lambda: work_through(read))
