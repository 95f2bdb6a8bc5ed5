"""Takes lost flow runs of the work pool up again: those whose process was killed, or whose machine is gone.

    Watch(api, name).start()        # in each worker of the pool
    take_up(client, run.id)         # at once, for a run whose process is known to be gone

Each worker gives a sign every few seconds, and looks for the signs of the others; each flow run sends heartbeats. A run
is lost if neither its worker nor the run itself gave a sign for `SILENCE_S`. That time is counted while the server
answers: during its outage nobody can give a sign, so after it everybody gets the whole time again.

A lost run ends as crashed, and a new one with its parameters goes on in its place, which resumes in the store. Prefect
could run the same one again, but would then take results of finished sub-flows from the disk of the lost machine. A run
that was taken for lost and lives (its machine was cut off) disturbs no other: the locks of the store's stages keep the
two apart.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilterParentFlowRunId,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from deployments import credentials, lost, pool
from iris_core.common.errors import first_line

LOOK_EVERY_S = 5.0
SILENCE_S = 45.0  # longer than the 30 s between the heartbeats of a flow run, the shortest that Prefect allows
GAP_S = 30.0  # between two looks: more means an outage or a stopped machine
HEARTBEAT_S = 30
AGAIN = 3  # times that a run is taken up: it may be what ends its machines
KEY = "iris-again-"  # how the idempotency keys of runs in place of lost ones begin
WORKER = "prefect.worker.name"  # the label of a flow run that names its worker
EVENTS = 50  # the most that the server returns: the newest heartbeats of all runs
ENDED = "its process was killed, or its machine went down"

log = get_logger("worker.fleet")


class Silences:
    """How long things have given no new sign. Time counts only between looks that follow each other closely.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.looked = clock()
        self.last: dict[str, tuple[object, float]] = {}

    def note(self, signs: Mapping[str, object]) -> dict[str, float]:
        """Takes each thing's newest sign; returns for how many seconds it has been the same."""
        now = self.clock()
        known = self.last if now - self.looked <= GAP_S else {}
        same = {name: known[name] for name, sign in signs.items() if name in known and known[name][0] == sign}
        self.looked, self.last = now, {name: same.get(name, (sign, now)) for name, sign in signs.items()}
        return {name: now - since for name, (_, since) in self.last.items()}


class Watch:
    """Gives signs for a worker, and takes up the runs of workers that give none.

    Args:
        api: the server's address.
        name: the worker's.
    """

    def __init__(self, api: str, name: str):
        self.api, self.name = api, name
        self.workers, self.runs = Silences(), Silences()

    def start(self) -> None:
        """Looks every few seconds, on a thread that ends with the process."""
        threading.Thread(target=self._keep_looking, daemon=True, name="fleet").start()

    def look(self) -> list[UUID]:
        """Gives a sign, then takes up the runs that are lost, and returns them."""
        with credentials.client(self.api) as client:
            every = int(get_current_settings().worker.heartbeat_seconds)
            client.send_worker_heartbeat(pool.NAME, self.name, every)
            silences = self.workers.note(_signs(client))
            living = {name for name, silent in silences.items() if silent <= SILENCE_S}
            runs = client.read_flow_runs(
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.NAME])),
                flow_run_filter=lost.unfinished(),
            )
            silent = self.runs.note(_heartbeats(client, runs))
            gone = [run.id for run in runs if run.labels.get(WORKER) not in living and silent[str(run.id)] > SILENCE_S]
            for run in gone:
                take_up(client, run)
            for name in silences.keys() - living:
                _forget(client, name)
            return gone

    def _keep_looking(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # the next look is the next try
            while True:
                try:
                    self.look()
                except Exception as error:  # most likely an outage; whatever it is, the worker goes on
                    log.debug("cannot look for lost runs: %s", first_line(error))
                time.sleep(LOOK_EVERY_S)


def take_up(client: SyncPrefectClient, run_id: UUID) -> None:
    """Ends a lost run, and starts another in its place unless it was being cancelled or is lost for the fourth time.

    However many workers do this, one run is started: the server makes one for each idempotency key.
    """
    run = client.read_flow_run(run_id)
    if run.state is None or (run.state.is_final() and not run.state.is_crashed()):
        return
    first, before = _origin(run)
    message = f"{ENDED}, {before + 1} times now: see its log, then run again to resume"
    if run.state.type is StateType.CANCELLING or run.deployment_id is None:
        message = f"{ENDED}: run again to resume"
    elif before < AGAIN:
        other = client.create_flow_run_from_deployment(
            run.deployment_id,
            parameters=run.parameters,
            tags=run.tags,
            job_variables=run.job_variables,
            idempotency_key=f"{KEY}{first}-{before + 1}",
        )
        message = f"{ENDED}: flow run {other.id} resumes it ({before + 1} of {AGAIN})"
    lost.crash(client, [run, *sub_runs(client, [run])], message)
    log.info("%s: %s", run.name, message)


def _origin(run: FlowRun) -> tuple[str, int]:
    """The run that a run goes on for, or itself, and how many times that was taken up before."""
    found = re.fullmatch(rf"{KEY}(.+)-(\d+)", run.idempotency_key or "")
    return (found[1], int(found[2])) if found else (str(run.id), 0)


def sub_runs(client: SyncPrefectClient, runs: list[FlowRun]) -> list[FlowRun]:
    """The unfinished sub-flow runs of `runs`, and theirs."""
    if not runs:
        return []
    of = FlowRunFilterParentFlowRunId(any_=[run.id for run in runs])
    found = client.read_flow_runs(flow_run_filter=lost.unfinished(parent_flow_run_id=of))
    return [*found, *sub_runs(client, found)]


def _signs(client: SyncPrefectClient) -> dict[str, object]:
    """The newest sign of each worker that watches."""
    workers = client.read_workers_for_work_pool(pool.NAME)
    return {each.name: each.last_heartbeat_time for each in workers if each.name.startswith(pool.WORKERS)}


def _heartbeats(client: SyncPrefectClient, runs: list[FlowRun]) -> dict[str, object]:
    """The newest heartbeat of each run; None without one."""
    found: dict[str, object] = {str(run.id): None for run in runs}
    if not runs:
        return found
    wanted = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run}" for run in found]),
    )
    for event in reversed(client.read_events(wanted, limit=EVENTS).events):  # the newest is the last
        found[event.resource.id.removeprefix("prefect.flow-run.")] = event.id
    return found


def _forget(client: SyncPrefectClient, name: str) -> None:
    """Removes a lost worker from the pool; if it lives after all, its next sign brings it back."""
    place = {"work_pool_name": pool.NAME, "name": name}
    with suppress(PrefectHTTPStatusError):  # another worker has done it
        client.request("DELETE", "/work_pools/{work_pool_name}/workers/{name}", path_params=place)
