"""Computes the missing jobs of the study in worker processes, one core each."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.study.results import Job, compute
from benchmarks.study.world import Setting, World, build_world

_world: World  # of a worker process


def _start_worker(setting: Setting) -> None:
    global _world
    torch.set_num_threads(1)
    _world = build_world(setting)


def _work(job: Job, folder: Path) -> None:
    compute(job, _world, folder)


def worker_pool(workers: int, setting: Setting) -> ProcessPoolExecutor:
    """A pool of processes, each with the world of a setting."""
    return ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (setting,))


def finish(jobs: Sequence[Job], setting: Setting, folder: Path, pool: ProcessPoolExecutor) -> None:
    """Computes the jobs without a file, with a line on stderr for each."""
    missing = [job for job in jobs if not job.file(folder, setting).exists()]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} results exist", file=sys.stderr)
    start = time.monotonic()
    tasks = {pool.submit(_work, job, folder): job for job in missing}
    for done, task in enumerate(as_completed(tasks), start=1):
        task.result()
        elapsed = time.monotonic() - start
        print(
            f"{done}/{len(missing)} {tasks[task].variant.name}, {elapsed:.0f} s, "
            f"about {elapsed / done * (len(missing) - done):.0f} s left",
            file=sys.stderr,
        )
