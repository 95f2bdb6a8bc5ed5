"""The ranks of a stage: processes that work on one spec together, each on a device of its own.

torchrun starts them (`iris_core.execution.launch`, or by hand), and says in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
and MASTER_PORT which one a process is. Without these variables there is one rank, and nothing here uses the network.

Rank 0 alone locks the stage's folder and writes the manifest. The other ranks wait for it as long as it takes, then do
the work with it (`all_ranks`). From then on every exchange has a time limit: a rank that waits longer fails.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

T = TypeVar("T")

START = datetime.timedelta(days=1)  # rank 0 may wait for another run to leave the folder
EXCHANGE = datetime.timedelta(minutes=10)  # the longest that ranks are apart: one of them loads or saves a model
DECISION = "iris/decision"  # of rank 0, in the ranks' key-value store
WORK, DONE = b"work", b"done"


def rank() -> int:
    """This process's rank; 0 where there are no others."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process's device on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many ranks there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def all_ranks(run: Callable[[Callable[[], T]], object], work: Callable[[], T]) -> None:
    """Does `work` on all ranks, if rank 0 finds that there is any.

    Args:
        run: runs on rank 0; calls its argument for the work of all ranks, or not if nothing is left to do.
        work: runs on every rank, with the process group.
    """
    if world_size() == 1:
        run(work)
        return
    store = _store()
    if rank():
        if store.get(DECISION) == WORK:
            with _process_group(store):
                work()
        return

    def with_others() -> T:
        store.set(DECISION, WORK)
        with _process_group(store):
            return work()

    run(with_others)
    if not store.check([DECISION]):
        store.set(DECISION, DONE)


def barrier() -> None:
    """Waits until every rank is here."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.barrier()


def all_reduce(tensor: Tensor) -> None:
    """Replaces `tensor` by its sum over the ranks; it has the same shape on each of them."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.all_reduce(tensor)


def decided(decide: Callable[[], bool]) -> bool:
    """What `decide` says on rank 0, on every rank."""
    if world_size() == 1:
        return decide()
    import torch

    answer = torch.tensor(int(rank() == 0 and decide()))
    all_reduce(answer)
    return bool(answer)


def _store() -> Store:
    """The key-value store at MASTER_ADDR, which torchrun or rank 0 serves."""
    from torch.distributed import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=START))
    return store


@contextmanager
def _process_group(store: Store) -> Iterator[None]:
    """Lets the ranks exchange tensors until the block ends: by NCCL on GPUs, by gloo on CPUs."""
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpu else "gloo",
        store=dist.PrefixStore("iris", store),
        rank=rank(),
        world_size=world_size(),
        timeout=EXCHANGE,
    )
    yield
    dist.destroy_process_group()  # not after an error: the other ranks may never come
