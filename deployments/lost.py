"""Flow runs whose process is gone: known by the lock it held, and marked as crashed, so that no history has them running.

    with alive(store) as tag, tags(tag):  # the process's flow runs carry the tag
        iris(experiment)
    end_lost_runs(store, api)             # the next start: the runs of each tag whose lock nobody holds

The kernel gives a lock back however its holder ended, and to nobody else: no process id can be mistaken for another's,
and runs that live, or were not started by `iris run`, are not touched.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

LOST = (
    "its process ended and could not say so (killed, or the machine went down): run the same command again to resume; "
    "what was finished is reused"
)
UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


@contextmanager
def alive(store: Path) -> Iterator[str]:
    """Holds a lock in `store` for as long as this process lives.

    Yields:
        The tag that the process's flow runs are to carry, which is the lock's name too.
    """
    tag = f"iris-run-{uuid.uuid4().hex[:8]}"
    lock = _locks(store) / tag
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        yield tag
    lock.unlink(missing_ok=True)  # it stays after an error: the server may not know of the end


def end_lost_runs(store: Path, api: str) -> int:
    """Marks the runs as crashed that processes have left under way which were `alive` in `store` and are no more.

    Returns:
        How many there were.
    """
    lost = 0
    for lock in sorted(_locks(store).glob("iris-run-*")):
        try:
            with filelock.FileLock(lock, timeout=0), SyncPrefectClient(api) as client:
                tags = FlowRunFilterTags(all_=[lock.name])
                runs = client.read_flow_runs(flow_run_filter=under_way(tags=tags))
                crash(client, runs, LOST)
                lock.unlink(missing_ok=True)  # a run that ends just now takes it away itself
                lost += len(runs)
        except filelock.Timeout:
            continue  # its process lives
    return lost


def crash(client: SyncPrefectClient, runs: list[FlowRun], message: str) -> None:
    """Marks flow runs as crashed, and those of their task runs that have not ended."""
    for run in runs:
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    unfinished = TaskRunFilterStateType(any_=[*UNDER_WAY, StateType.SCHEDULED])  # for its next try
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in runs])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=unfinished, name=None)),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=message), force=True)


def under_way(**criteria: object) -> FlowRunFilter:
    """The filter for flow runs that have begun and not ended, and fit `criteria` (fields of `FlowRunFilter`)."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))
    return FlowRunFilter(state=state, **criteria)


def _locks(store: Path) -> Path:
    return store / ".prefect" / "alive"
