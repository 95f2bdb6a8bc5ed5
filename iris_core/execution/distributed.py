"""The ranks of a stage: processes that work on one spec together, each on a device of its own.

torchrun starts them (`iris_core.execution.launch`, or by hand), and says in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
and MASTER_PORT which one a process is. Without these variables there is one rank, and nothing here uses the network.

Rank 0 alone locks the stage's folder and writes the manifest. The other ranks wait for it as long as it takes, then do
the work with it (`all_ranks`). From then on every exchange has a time limit: a rank that waits longer fails. What takes
some ranks long and the others not, as a large file does, is done in `together`, which has none.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from iris_core.common import gpus
from iris_core.common.errors import ConfigError, ExchangeFailed, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup, Store

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PER_MACHINE = "LOCAL_WORLD_SIZE"  # torchrun sets it, too; other starters may leave it out
DECIDED = datetime.timedelta(days=1)  # rank 0 may wait for another run to leave the folder
EXCHANGE = datetime.timedelta(minutes=10)  # the longest that ranks are apart, except in `together`
FIRST_LOOK_S, LOOK_S = 0.01, 1.0  # between signs of life
HEARD = datetime.timedelta(minutes=1)  # for the others to hear of an end that came early
DECISION = "iris/decision"  # of rank 0, in the ranks' key-value store: WORK, or the exit code of all
WORK = "work"


def rank() -> int:
    """This process's rank; 0 where there are no others."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process's device on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many ranks there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """How many ranks there are on this machine, and on each of the others; all of them where nothing says so."""
    return int(os.environ.get(PER_MACHINE) or world_size())


def check(stage: str, *, allowed: bool) -> None:
    """Checks torchrun's variables.

    Args:
        stage: its name, for the message.
        allowed: whether several ranks may work on it.

    Raises:
        ConfigError: only some of them are set, one is no number, there are several ranks and may not be, more ranks
            than GPUs, or not as many on each machine.
    """
    found = {name: os.environ.get(name, "") for name in VARIABLES}
    if not found["RANK"] and not found["WORLD_SIZE"]:
        return
    found[PER_MACHINE] = os.environ.get(PER_MACHINE) or found["WORLD_SIZE"]
    for name, value in found.items():
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise ConfigError(
                f"{name} is {value or 'not set'}, beside other variables of torchrun: start ranks with torchrun, which "
                f"sets {', '.join(VARIABLES)}, or unset them all"
            )
    if (count := len(gpus.visible())) and local_rank() >= count:
        raise ConfigError(
            f"LOCAL_RANK is {local_rank()}, but this machine shows {count} GPUs ({gpus.VISIBLE}): start one rank a GPU"
        )
    if not local_world_size() or world_size() % local_world_size():
        raise ConfigError(
            f"{PER_MACHINE} is {local_world_size()}, but WORLD_SIZE is {world_size()}: start as many ranks on each "
            "machine"
        )
    if world_size() > 1 and not allowed:
        raise ConfigError(
            f"WORLD_SIZE is {world_size()}, but {stage} is one process: start it without torchrun, or unset WORLD_SIZE"
        )


def without_ranks(environment: dict[str, str]) -> dict[str, str]:
    """`environment` without torchrun's variables: a process that is started with it is no rank of this one's."""
    return {
        name: value
        for name, value in environment.items()
        if name not in (*VARIABLES, PER_MACHINE) and not name.startswith("TORCHELASTIC_")
    }


def all_ranks(run: Callable[[Callable[[], T]], object], work: Callable[[], T]) -> None:
    """Does `work` on all ranks, if rank 0 finds that there is any. If rank 0 fails before, all end with its exit code.

    Args:
        run: runs on rank 0; calls its argument for the work of all ranks, or not if nothing is left to do.
        work: runs on every rank, with the process group.
    """
    if world_size() == 1:
        run(work)
        return
    store = _store()
    if rank():
        if (decision := _hear(store)) != WORK:
            sys.exit(int(decision))
        with _process_group(store):
            work()
        return

    def with_others() -> T:
        store.set(DECISION, WORK)
        with _process_group(store):
            return work()

    try:
        run(with_others)
    except Exception as error:
        _end_others(store, getattr(error, "exit_code", 1))
        raise
    _end_others(store, 0)


def joined() -> bool:
    """Whether this process exchanges tensors with other ranks, or did until an error."""
    module = sys.modules.get("torch.distributed")
    return module is not None and bool(module.is_initialized())


def barrier(group: ProcessGroup | None = None) -> None:
    """Waits until every rank is here; `group` is for a thread beside the main one, see `new_group`."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.barrier(group)


def together(work: Callable[[], T], group: ProcessGroup | None = None) -> T:
    """Does `work` on every rank, and returns its result once all have done it, however long that takes one of them.

    It runs on a thread. Meanwhile the ranks exchange signs of life, so one that is lost ends the others at once.

    Args:
        work: of this rank; it exchanges nothing, or files between two ranks.
        group: as of `barrier`.
    """
    if world_size() == 1:
        return work()
    import torch
    import torch.distributed as dist

    pool = ThreadPoolExecutor(1)
    done, pause = pool.submit(work), FIRST_LOOK_S
    pool.shutdown(wait=False)
    while True:
        wait([done], pause)
        working = torch.tensor(0 if done.done() else 1)
        if not working:
            done.result()  # an error ends this rank now
        dist.all_reduce(working, group=group)
        if not working:
            return done.result()
        pause = min(2 * pause, LOOK_S)


def new_group() -> ProcessGroup | None:
    """All ranks once more: exchanges of two threads in one group would mix. All of them call this; None for one."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=EXCHANGE) if world_size() > 1 else None


def all_reduce(tensor: Tensor) -> None:
    """Replaces `tensor` by its sum over the ranks; it has the same shape on each of them."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.all_reduce(tensor)


def agreed(number: int) -> int:
    """The `number` of rank 0, on every rank."""
    import torch

    shared = torch.tensor(number if rank() == 0 else 0)
    all_reduce(shared)
    return int(shared)


def decided(decide: Callable[[], bool]) -> bool:
    """What `decide` says on rank 0, on every rank."""
    return bool(agreed(together(lambda: int(rank() == 0 and decide()))))


def _store() -> Store:
    """The key-value store at MASTER_ADDR, which torchrun or rank 0 serves."""
    from torch.distributed import rendezvous

    with _exchanges():
        store, _, _ = next(rendezvous("env://", timeout=EXCHANGE))
    return store


def _hear(store: Store) -> str:
    """Waits for the decision of rank 0."""
    store.set_timeout(DECIDED)
    with _exchanges():
        decision = store.get(DECISION).decode()
        store.set(f"{DECISION}/{rank()}", "")
    store.set_timeout(EXCHANGE)
    return decision


def _end_others(store: Store, code: int) -> None:
    """Ends the other ranks with an exit code, unless they work already."""
    if store.check([DECISION]):
        return
    store.set(DECISION, str(code))
    with suppress(RuntimeError):  # one of them never started
        store.wait([f"{DECISION}/{number}" for number in range(1, world_size())], HEARD)  # rank 0 may be the server


@contextmanager
def _process_group(store: Store) -> Iterator[None]:
    """Lets the ranks exchange tensors until the block ends: by NCCL on GPUs, by gloo on CPUs."""
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank())
    with _exchanges():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpu else "gloo",
            store=dist.PrefixStore("iris", store),
            rank=rank(),
            world_size=world_size(),
            timeout=EXCHANGE,
        )
        yield
    dist.destroy_process_group()  # not after an error: the other ranks may never come


@contextmanager
def _exchanges() -> Iterator[None]:
    """Turns what a failed exchange raises into one error.

    Raises:
        ExchangeFailed: another rank is lost, or did not come in time.
    """
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error).lower():  # which has no class of its own
            raise
        said = first_line(error)
        raise ExchangeFailed(f"an exchange between ranks failed ({said}): run again to resume") from error
