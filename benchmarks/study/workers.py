"""Computes the missing files of the study in worker processes, one core each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch


class Task(NamedTuple):
    """A file and what writes it.

    Attributes:
        name: shown when it is done.
        file: what it writes.
        work: a picklable function.
    """

    name: str
    file: Path
    work: Callable[[], None]


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of processes."""
    return ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))


def finish(tasks: Sequence[Task], pool: ProcessPoolExecutor) -> None:
    """Does the tasks without a file, with a line on stderr for each."""
    missing = [task for task in tasks if not task.file.exists()]
    print(f"{len(tasks) - len(missing)} of {len(tasks)} results exist", file=sys.stderr)
    start = time.monotonic()
    running = {pool.submit(task.work): task for task in missing}
    for done, future in enumerate(as_completed(running), start=1):
        future.result()
        elapsed = time.monotonic() - start
        print(
            f"{done}/{len(missing)} {running[future].name}, {elapsed:.0f} s, "
            f"about {elapsed / done * (len(missing) - done):.0f} s left",
            file=sys.stderr,
        )
