"""Flow runs whose process is gone: marked as crashed, so that no history has them running.

    with alive(store) as tag, tags("iris", tag):  # the process's flow runs carry the tag
        iris(experiment)
    end_lost_runs(store, api)                     # the next to come to that server, from whatever store: at once
    watch(api)                                    # where nobody comes: the server itself, when heartbeats stop

A process holds a lock for as long as it lives, and its flow runs carry the lock's name. The kernel gives a lock back
however its holder ended, and to nobody else: no process id can be mistaken for another's. The search starts from the
runs that the server has under way, so a lock decides about the runs of its own process only, whichever server has them.
Runs of processes on other machines are left to the server.
"""

from __future__ import annotations

import datetime
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Crashed

from deployments import credentials

TAG = "iris"
FLOWS = ["iris", "iris-iteration", "iris-compare", "iris-evaluate"]
LOST = (
    "its process ended and could not say so (killed, or the machine went down): run the same command again to resume; "
    "what was finished is reused"
)
UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
# a flow run sends a heartbeat every three minutes, none while its server is away: `tracking.patience`, ten minutes
SILENT = datetime.timedelta(minutes=20)
SLOW = datetime.timedelta(minutes=15)  # to start a flow run's process
REPORTED = datetime.timedelta(minutes=1)  # the states of tasks arrive after their flow run's
OLD_S = 24 * 3600.0


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
    """Marks the runs as crashed that processes of this machine have left under way on a server.

    Args:
        store: where locks are looked for, beside the stores that the runs name.
        api: the server's address.

    Returns:
        How many there were.
    """
    lost = 0
    with credentials.client(api) as client:
        wanted = under_way(tags=FlowRunFilterTags(all_=[TAG]))
        for lock, runs in _by_lock(client.read_flow_runs(flow_run_filter=wanted), store).items():
            with suppress(filelock.Timeout, OSError), filelock.FileLock(lock, timeout=0):
                crash(client, runs, LOST)
                lock.unlink(missing_ok=True)  # a run that ends just now takes it away itself
                lost += len(runs)
        _end_tasks_of_crashed(client)
        _remove_settled_locks(client, store)
    return lost


def watch(api: str) -> None:
    """Has the server mark flow runs that send no heartbeat any more, or never begin. What it has under the names stays."""
    ends = [f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Crashed", "Cancelled")]
    beat, pending = "prefect.flow-run.heartbeat", "prefect.flow-run.Pending"
    # a server that lets this user make none: whoever comes next marks them
    with suppress(PrefectHTTPStatusError), credentials.client(api) as client:
        for automation in (
            _crash_after("iris: flow runs without a heartbeat", {beat}, {beat, *ends}, SILENT),
            _crash_after("iris: flow runs that never begin", {pending}, {"prefect.flow-run.*"}, SLOW),
        ):
            if not client.read_automations_by_name(automation.name):
                client.create_automation(automation)


def crash(client: SyncPrefectClient, runs: list[FlowRun], message: str) -> None:
    """Marks flow runs as crashed, or as cancelled where that was under way, and their task runs that have not ended."""
    for run in runs:
        client.set_flow_run_state(run.id, _end_of(run, message), force=True)
    _end_tasks(client, FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in runs])), message)


def under_way(**criteria: object) -> FlowRunFilter:
    """The filter for flow runs that have begun and not ended, and fit `criteria` (fields of `FlowRunFilter`)."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))
    return FlowRunFilter(state=state, **criteria)


def _crash_after(name: str, event: set[str], expected: set[str], within: datetime.timedelta) -> AutomationCore:
    """The automation that marks a flow run of ours which nothing `expected` follows on an event in time."""
    trigger = EventTrigger(
        after=event,
        expect=expected,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, message=LOST)
    return AutomationCore(name=name, trigger=trigger, actions=[action])


def _end_of(run: FlowRun, message: str) -> State[object]:
    made = Cancelled if run.state and run.state.type is StateType.CANCELLING else Crashed
    return made(message=message)


def _end_tasks_of_crashed(client: SyncPrefectClient) -> None:
    """Ends what the automation cannot reach: the task runs of a flow run that it has marked."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED]))
    before = FlowRunFilterEndTime(before_=datetime.datetime.now(datetime.UTC) - REPORTED)
    ours = FlowFilter(name=FlowFilterName(any_=FLOWS))
    _end_tasks(client, FlowRunFilter(state=state, end_time=before), LOST, ours)


def _end_tasks(client: SyncPrefectClient, of: FlowRunFilter, message: str, flows: FlowFilter | None = None) -> None:
    unfinished = TaskRunFilterStateType(any_=[*UNDER_WAY, StateType.SCHEDULED])  # for its next try
    tasks = client.read_task_runs(
        flow_filter=flows,
        flow_run_filter=of,
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=unfinished, name=None)),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=message), force=True)


def _by_lock(runs: list[FlowRun], store: Path) -> dict[Path, list[FlowRun]]:
    """The flow runs of each lock that is found, in `store` or in the store that one of its runs names."""
    by_tag: dict[str, list[FlowRun]] = defaultdict(list)
    for run in runs:
        for tag in run.tags:
            if re.fullmatch("iris-run-[0-9a-f]{8}", tag):  # it becomes a file's name
                by_tag[tag].append(run)
    found = {}
    for tag, tagged in by_tag.items():
        for place in [store, *map(_store_of, tagged)]:
            if place and (lock := _locks(place) / tag).is_file():
                found[lock] = tagged
                break
    return found


def _store_of(run: FlowRun) -> Path | None:
    """The store that a flow run's parameters name, unless it depends on a working directory."""
    experiment = run.parameters.get("experiment")
    store = experiment.get("store") if isinstance(experiment, dict) else None
    path = Path(store).expanduser() if isinstance(store, str) else None
    return path if path and path.is_absolute() else None


def _remove_settled_locks(client: SyncPrefectClient, store: Path) -> None:
    """Removes locks that nobody holds and whose runs this server knows: they have ended. Others stay for a day."""
    for lock in _locks(store).glob("iris-run-*"):
        with suppress(filelock.Timeout, OSError):
            old = time.time() - lock.stat().st_mtime > OLD_S
            known = FlowRunFilter(tags=FlowRunFilterTags(all_=[lock.name]))
            if old or client.read_flow_runs(flow_run_filter=known, limit=1):
                with filelock.FileLock(lock, timeout=0):
                    lock.unlink(missing_ok=True)


def _locks(store: Path) -> Path:
    return store / ".prefect" / "alive"
