"""Marks flow runs as crashed if their process is gone, so that Prefect does not show them as running forever.

    with alive(store) as tag, tags("iris", tag):  # the process's flow runs have the tag
        iris(experiment)
    end_lost_runs(store, api)                     # marks them at once, for the next process that uses that server
    watch(api)                                    # lets the server itself mark them when heartbeats stop

A process holds a lock for as long as it lives, and its flow runs have the lock's name as a tag. The kernel releases a
lock whatever ended its holder; a process id could meanwhile be that of another process. The search starts from the
server's unfinished runs, so a lock decides about the runs of its own process only. Runs of processes on other machines
are left to the server, and those of the work pool to its workers (`deployments.fleet`).
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
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Crashed

from deployments import credentials
from iris_core.common.mirrors import is_remote, local_root

TAG = "iris"
FLOWS = ["iris", "iris-iteration", "iris-compare", "iris-with-sft", "iris-evaluate"]
LOST = (
    "its process ended without a report (killed, or the machine went down): run the same command again to resume; "
    "what was finished is reused"
)
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
# a flow run sends a heartbeat every 3 minutes, but none during an outage of its server (10 minutes, tracking.patience)
MAX_SILENCE = datetime.timedelta(minutes=20)
MAX_START = datetime.timedelta(minutes=15)  # of a flow run's process
TASK_DELAY = datetime.timedelta(minutes=1)  # task states arrive after the state of their flow run
OLD_S = 24 * 3600.0


@contextmanager
def alive(store: Path) -> Iterator[str]:
    """Holds a lock in `store` for as long as this process lives.

    Yields:
        The tag for the process's flow runs; it is also the lock's name.
    """
    tag = f"iris-run-{uuid.uuid4().hex[:8]}"
    lock = _locks(store) / tag
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        yield tag
    lock.unlink(missing_ok=True)  # after an error it stays: the server may not know that the runs ended


def end_lost_runs(store: Path, api: str) -> int:
    """Marks runs as crashed that a server shows as unfinished and whose process on this machine is gone.

    Args:
        store: where locks are looked for, and in the stores that the runs name.
        api: the server's address.

    Returns:
        How many there were.
    """
    lost = 0
    with credentials.client(api) as client:
        wanted = unfinished(tags=FlowRunFilterTags(all_=[TAG]))
        for lock, runs in _by_lock(client.read_flow_runs(flow_run_filter=wanted), store).items():
            with suppress(filelock.Timeout, OSError), filelock.FileLock(lock, timeout=0):
                crash(client, runs, LOST)
                lock.unlink(missing_ok=True)  # a run that ends just now removes it itself
                lost += len(runs)
        _end_tasks_of_crashed(client)
        _remove_settled_locks(client, store)
    return lost


def watch(api: str) -> None:
    """Lets the server mark flow runs that stop sending heartbeats, or never begin.

    Automations that it has are kept as they are, but for the flows that they are about.
    """
    ends = [f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Crashed", "Cancelled")]
    beat, pending = "prefect.flow-run.heartbeat", "prefect.flow-run.Pending"
    # a server that refuses them to this user: the next process marks the runs
    with suppress(PrefectHTTPStatusError), credentials.client(api) as client:
        for automation in (
            _crash_after("iris: flow runs without a heartbeat", {beat}, {beat, *ends}, MAX_SILENCE),
            _crash_after("iris: flow runs that never begin", {pending}, {"prefect.flow-run.*"}, MAX_START),
        ):
            known = client.read_automations_by_name(automation.name)
            if not known:
                client.create_automation(automation)
            for each in known:
                _update_flows(client, each, automation)


def crash(client: SyncPrefectClient, runs: list[FlowRun], message: str) -> None:
    """Marks flow runs as crashed, or as cancelled if they were being cancelled, and ends their unfinished task runs."""
    for run in runs:
        client.set_flow_run_state(run.id, _end_of(run, message), force=True)
    _end_tasks(client, FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in runs])), message)


def unfinished(**criteria: object) -> FlowRunFilter:
    """The filter for flow runs that have begun, have not ended, and meet `criteria` (fields of `FlowRunFilter`)."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))
    return FlowRunFilter(state=state, **criteria)


def _crash_after(name: str, event: set[str], expected: set[str], within: datetime.timedelta) -> AutomationCore:
    """The automation that marks a flow run of ours if none of the `expected` events follows `event` in time."""
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


def _update_flows(client: SyncPrefectClient, known: Automation, wanted: AutomationCore) -> None:
    """Makes an automation of an earlier version be about the same flows as `wanted`; the rest may be the user's."""
    trigger, about = known.trigger, wanted.trigger
    if (
        isinstance(trigger, EventTrigger)
        and isinstance(about, EventTrigger)
        and trigger.match_related != about.match_related
    ):
        trigger.match_related = about.match_related
        owned = {"id", "owner_resource"}  # by the server, which refuses them
        content = {name: value for name, value in known if name not in owned}
        client.update_automation(known.id, AutomationCore(**content))


def _end_of(run: FlowRun, message: str) -> State[object]:
    kind = Cancelled if run.state and run.state.type is StateType.CANCELLING else Crashed
    return kind(message=message)


def _end_tasks_of_crashed(client: SyncPrefectClient) -> None:
    """Ends the task runs of flow runs that an automation has marked; automations cannot reach task runs."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED]))
    before = FlowRunFilterEndTime(before_=datetime.datetime.now(datetime.UTC) - TASK_DELAY)
    ours = FlowFilter(name=FlowFilterName(any_=FLOWS))
    _end_tasks(client, FlowRunFilter(state=state, end_time=before), LOST, ours)


def _end_tasks(client: SyncPrefectClient, of: FlowRunFilter, message: str, flows: FlowFilter | None = None) -> None:
    types = TaskRunFilterStateType(any_=[*UNFINISHED, StateType.SCHEDULED])  # scheduled: for its next try
    tasks = client.read_task_runs(
        flow_filter=flows,
        flow_run_filter=of,
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=types, name=None)),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=message), force=True)


def _by_lock(runs: list[FlowRun], store: Path) -> dict[Path, list[FlowRun]]:
    """The flow runs of each lock that is found in `store` or in a store that one of its runs names."""
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
    """The store that a flow run's parameters name, or its mirror here.

    None for a relative path, which depends on a working directory.
    """
    experiment = run.parameters.get("experiment")
    store = experiment.get("store") if isinstance(experiment, dict) else None
    if isinstance(store, str) and is_remote(store):
        return local_root(store)
    path = Path(store).expanduser() if isinstance(store, str) else None
    return path if path and path.is_absolute() else None


def _remove_settled_locks(client: SyncPrefectClient, store: Path) -> None:
    """Removes free locks if this server knows their runs, which have ended. Other free locks stay for a day."""
    for lock in _locks(store).glob("iris-run-*"):
        with suppress(filelock.Timeout, OSError):
            old = time.time() - lock.stat().st_mtime > OLD_S
            known = FlowRunFilter(tags=FlowRunFilterTags(all_=[lock.name]))
            if old or client.read_flow_runs(flow_run_filter=known, limit=1):
                with filelock.FileLock(lock, timeout=0):
                    lock.unlink(missing_ok=True)


def _locks(store: Path) -> Path:
    return store / ".prefect" / "alive"
