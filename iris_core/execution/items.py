"""The items of a stage, such as shards or benchmarks: each is done alone, by whichever worker is free.

    def sampler(spec, out):                 # opens the engine
        def sample_shard(name): ...         # does one item: writes its unit
        return sample_shard

    run_items(spec, out, names, sampler, on_done)
    main(GenerateSpec, generate, sampler)   # the command line, also that of a worker

The stage's own process has the folder's lock, gives out the items and reports progress. With one engine it does them
itself. With several, each engine has a worker: a long-lived process on GPUs of its own, on this machine or on a node of
a Ray cluster. A worker that is lost costs the item it had, which another worker does again.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from iris_core.common.errors import StageFailed
from iris_core.execution import channels, devices, engine_process
from iris_core.execution.item_worker import LocalWorker, WorkerLost
from iris_core.store import Spec

TRIES = 2  # workers that an item may cost

S = TypeVar("S", bound=Spec)
Handle = Callable[[str], None]

log = logging.getLogger(__name__)


class Worker(Protocol):
    """An engine in a process of its own."""

    def handle(self, item: str) -> None:
        """Does an item and returns when its unit is written.

        Raises:
            WorkerLost: the worker has ended.
            IrisError: the stage cannot succeed.
        """

    def close(self) -> None:
        """Ends the worker, also in the middle of an item."""


def run_items(
    spec: S, out: Path, items: Sequence[str], open_engine: Callable[[S, Path], Handle], on_done: Callable[[str], None]
) -> None:
    """Does the items of a stage.

    Args:
        spec: the stage's.
        out: the stage's folder.
        items: their names, the longest first.
        open_engine: opens an engine, and returns the function that does one item with it.
        on_done: is called after each item, in this thread.

    Raises:
        StageFailed: no worker is left, or an item has cost two.
    """
    if spec.execution.launcher == "ray":
        from iris_core.execution import ray_items  # Ray is optional

        with ray_items.workers(spec, out, len(items)) as workers:
            share(spec.stage, workers, items, on_done)
        return
    groups = devices.engine_gpus(spec.execution)[: len(items)]
    if len(groups) == 1:
        with engine_process.watched(spec.stage):
            handle = open_engine(spec, out)
            for item in items:
                handle(item)
                on_done(item)
        return
    with _local_workers(spec, out, groups) as workers:
        share(spec.stage, workers, items, on_done)


def share(stage: str, workers: Sequence[Worker], items: Sequence[str], on_done: Callable[[str], None]) -> None:
    """Gives the items to the workers, each one at a time, until all are done.

    Args:
        stage: its name, for messages.
        workers: they are not closed here.
        items: their names, the longest first.
        on_done: is called after each item, in this thread.

    Raises:
        StageFailed: no worker is left, or an item has cost two.
        IrisError: a worker's own error.
    """
    waiting, idle = deque(items), list(workers)
    running: dict[Future[None], tuple[Worker, str]] = {}
    lost: Counter[str] = Counter()
    pool = ThreadPoolExecutor(len(workers))
    try:
        while waiting or running:
            while waiting and idle:
                worker, item = idle.pop(0), waiting.popleft()
                running[pool.submit(worker.handle, item)] = worker, item
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, item = running.pop(future)
                try:
                    future.result()
                except WorkerLost as loss:
                    lost[item] += 1
                    _check(stage, item, lost[item], bool(idle or running), loss)
                    log.warning("%s: a worker is lost (%s): %s is done again by another", stage, loss, item)
                    waiting.appendleft(item)
                else:
                    idle.append(worker)
                    on_done(item)
    finally:
        pool.shutdown(wait=False)  # those that still work end when their workers are closed


def close(workers: Sequence[Worker]) -> None:
    """Closes the workers, all at the same time."""
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(lambda worker: worker.close(), workers))


def _check(stage: str, item: str, lost: int, others: bool, loss: WorkerLost) -> None:
    if lost == TRIES:
        raise StageFailed(f"{stage}: {item} has cost {lost} workers; the last one {loss}: run again to resume")
    if not others:
        raise StageFailed(f"{stage}: no worker is left for {item}; the last one {loss}: run again to resume")


@contextmanager
def _local_workers(spec: Spec, out: Path, groups: list[list[str]]) -> Iterator[list[LocalWorker]]:
    """A worker on this machine for each group of GPUs."""
    workers: list[LocalWorker] = []
    with channels.in_memory(spec.model_dump_json()) as request:
        try:
            for number, names in enumerate(groups):
                variables = devices.environment(len(groups), names)
                workers.append(LocalWorker(spec.stage, request, out, f"worker {number}", variables))
            yield workers
        finally:
            close(workers)
