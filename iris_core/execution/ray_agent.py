"""What a stage has on a node of a Ray cluster: an actor that runs the stage's processes there.

They run below supervisors (`iris_core.execution.supervision`), so nothing outlives the actor, whatever ends it: the
driver, a lost node, or Ray.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
import ray

from iris_core.common.errors import IrisError
from iris_core.common.ports import free_port
from iris_core.common.progress import Advance, Notice
from iris_core.execution import devices, supervision
from iris_core.execution.channels import in_memory
from iris_core.execution.item_worker import LocalWorker
from iris_core.execution.launch import ranks_command, supervise
from iris_core.store import Artifact, probe
from iris_core.store.inputs import check_inputs
from iris_core.store.remote import remote

PLACES = ("HF_HOME", "IRIS_CACHE")  # where things are on a node, unless it does not say so
LOOK_S = 0.1
END_S = supervision.GRACE_S + 5.0


class Place(NamedTuple):
    """Where an agent runs.

    Attributes:
        node: the node's name and address, for messages.
        address: other nodes reach it there.
        port: one that was free a moment ago.
    """

    node: str
    address: str
    port: int


class Lines(NamedTuple):
    """What a command said since the last time.

    Attributes:
        log: lines that it printed.
        events: lines of its progress pipe.
        error: how it failed, as class and message; None if it goes on or has succeeded.
    """

    log: list[str]
    events: list[str]
    error: tuple[str, str] | None = None


class Agent:
    """Runs processes on its node.

    Args:
        environment: variables that the driver hands on.
        count: how many processes of the stage share the node.
    """

    def __init__(self, environment: dict[str, str], count: int):
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's guess
        os.environ.update({name: value for name, value in environment.items() if not _is_own(name)})
        self.variables = devices.environment(count, [])

    def place(self) -> Place:
        """Where this agent runs."""
        address = ray.util.get_node_ip_address()
        return Place(f"{socket.gethostname()} ({address})", address, free_port())

    def check_versions(self, known: dict[str, str]) -> None:
        """As `probe.check_versions`, on this node."""
        probe.check_versions(known)

    def check_probe(self, store: Path, token: str) -> str:
        """As `probe.check_probe`, on this node."""
        return probe.check_probe(store, token)

    def check_bucket(self, uri: str) -> None:
        """As `Remote.check`, on this node."""
        try:
            remote(uri).check()
        except IrisError as error:
            raise type(error)(f"{socket.gethostname()}: {error}") from error

    def check_inputs(self, inputs: list[Artifact], patience: float) -> None:
        """As `inputs.check_inputs`, on this node."""
        check_inputs(inputs, patience)

    def end(self) -> None:
        """Ends what runs here, and returns once nothing is left of it."""
        supervision.terminate(psutil.Process().children(), END_S)


class RankAgent(Agent):
    """Runs the ranks of its node."""

    def run(self, stage: str, spec: str, out: Path, ranks: int, rendezvous: Sequence[str]) -> Iterator[Lines]:
        """Runs a stage's ranks to their end.

        Args:
            stage: the stage's name.
            spec: its spec as JSON.
            out: its folder.
            ranks: how many there are on this node.
            rendezvous: torchrun's options that say how they meet those of other nodes.

        Yields:
            What they say, when they have said something.
        """
        log: queue.SimpleQueue[str] = queue.SimpleQueue()
        events: queue.SimpleQueue[str] = queue.SimpleQueue()

        def on_progress(event: Advance | Notice) -> None:
            events.put(event.model_dump_json())

        with in_memory(spec) as request, ThreadPoolExecutor(1) as thread:
            command = ranks_command(stage, ["--spec", request, "--out", str(out)], ranks, rendezvous)
            running = thread.submit(supervise, stage, command, on_progress, log.put, self.variables)
            yield from _said(running, log, events)


class EngineAgent(Agent):
    """Runs a worker with one engine."""

    worker: LocalWorker | None = None

    def open(self, stage: str, spec: str, out: Path, name: str) -> None:
        """Starts the worker; see `LocalWorker`. `spec` is the stage's spec as JSON."""
        self.files = ExitStack()
        self.worker = LocalWorker(stage, self.files.enter_context(in_memory(spec)), out, name, self.variables)

    def handle(self, item: str) -> None:
        """As `LocalWorker.handle`."""
        assert self.worker is not None
        self.worker.handle(item)

    def end(self) -> None:
        """Closes the worker, also in the middle of an item."""
        if self.worker is not None:
            self.worker.close()
            self.files.close()


def _is_own(name: str) -> bool:
    """Whether this node has a variable of its own."""
    return name in PLACES and name in os.environ


def _said(
    running: Future[IrisError | None], log: queue.SimpleQueue[str], events: queue.SimpleQueue[str]
) -> Iterator[Lines]:
    while not running.done():
        if not (log.empty() and events.empty()):
            yield Lines(_all(log), _all(events))
        else:
            wait([running], timeout=LOOK_S)
    error = running.result()
    yield Lines(_all(log), _all(events), None if error is None else (type(error).__name__, str(error)))


def _all(lines: queue.SimpleQueue[str]) -> list[str]:
    found = []
    while not lines.empty():
        found.append(lines.get())
    return found
