"""The Ray cluster that a stage runs on: connecting, what each node gives, and actors on as many nodes as are asked.

with connected(spec.execution), started(Agent, spec.execution, store) as actors: ...
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from iris_core.common import gpus, mirrors
from iris_core.common.errors import IrisError, ServiceError, StageCrashed, StageFailed, first_line
from iris_core.common.outages import NOTIFY_EVERY_S, notify
from iris_core.execution.ray_address import address
from iris_core.execution.ray_agent import END_S, Agent
from iris_core.store import probe
from iris_core.store.spec import Execution

ANSWER_S = 120.0  # of a new actor: it imports its module first
GPU = "GPU"  # the resource
PLACED_S = 5.0  # to be placed in a cluster that is idle
FORWARDED = ("GLOO_", "HF_", "IRIS_", "MKL_", "NCCL_", "OMP_", "TOKENIZERS_", "TORCH_", "TRANSFORMERS_", "VLLM_")
SECRET = {"KEY", "PASSWORD", "SECRET", "TOKEN"}

log = logging.getLogger(__name__)


class Share(NamedTuple):
    """What a stage takes of a node.

    Attributes:
        resource: "GPU"; "CPU" in a cluster without GPUs.
        amount: how many of them, one process each.
    """

    resource: str
    amount: int


@contextmanager
def connected(execution: Execution, *, logs: bool = False) -> Iterator[None]:
    """Connects this process to the cluster until the block ends.

    Args:
        execution: names the cluster.
        logs: whether what actors print appears in this process's output.

    Raises:
        ConfigError: Ray is not installed, or the address is none.
        ServiceError: the cluster does not answer, or refuses this process.
    """
    place = address(execution.ray_address)
    os.environ["RAY_COLOR_PREFIX"] = "0"  # of lines that actors print
    try:
        ray.init(place, log_to_driver=logs, logging_level="error")
    except Exception as error:  # of many types, from several libraries
        raise ServiceError(
            f"execution.ray_address: the Ray cluster at {place} cannot be used ({first_line(error)}): has Ray been "
            "started on this machine, and is the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token?"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def share_of(execution: Execution) -> Share:
    """What a stage takes of each node, in a cluster that has as much.

    Raises:
        ServiceError: too few nodes have it.
    """
    nodes = _nodes()
    counts = _counts(nodes, GPU)
    resource = GPU if any(counts) else "CPU"
    all_of_them = counts[execution.nodes - 1] if len(counts) >= execution.nodes else 0
    amount = execution.gpus_per_node or max(1, all_of_them)
    if sum(count >= amount for count in _counts(nodes, resource)) < execution.nodes:
        raise ServiceError(
            f"execution.nodes: {execution.nodes} × {amount} {resource} are asked of the Ray cluster, which has "
            f"{_listed(nodes)}: start more nodes, or lower execution.nodes or execution.gpus_per_node"
        )
    return Share(resource, amount)


def smallest_gpu(share: Share) -> gpus.Gpu | None:
    """The GPU with the least memory on the nodes that have `share`; None if their nvidia-smi shows none.

    Raises:
        IrisError: a node was lost, or cannot run tasks.
    """
    has_share = [node["NodeID"] for node in _nodes() if node["Resources"].get(share.resource, 0) >= share.amount]
    task = ray.remote(num_cpus=0)(_installed_gpus)
    asked = [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in has_share]
    found = [gpu for each in answers([task.remote() for task in asked]) for gpu in each]
    return min(found, key=lambda gpu: float(gpu["memory.total"]), default=None)


@contextmanager
def started(
    kind: type[Agent], execution: Execution, store: Path, share: Share, size: int, count: int
) -> Iterator[list[Any]]:
    """Actors on the nodes that a stage asks for, which share the folder `store`; the block leaves nothing of them.

    Args:
        kind: their class.
        execution: of the stage.
        store: the folder.
        share: of each node.
        size: how much of the share an actor takes.
        count: how many actors there are at most; the first ones are on different nodes.

    Yields:
        Handles of the actors.

    Raises:
        IrisError: a node cannot run them, does not share the folder, or has other versions than this machine.
    """
    with _placed(execution, share) as group:
        options = {"max_concurrency": 4, **_options(share.resource, size)}
        bundles = list(range(execution.nodes)) * (share.amount // size)
        actors = [
            ray.remote(kind)
            .options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle), **options)
            .remote(forwarded(), share.amount)
            for bundle in bundles[:count]
        ]
        try:
            _check_nodes(store, actors[: execution.nodes])
            yield actors
        finally:
            with suppress(RayError):  # also where one is lost
                ray.wait([actor.end.remote() for actor in actors], num_returns=len(actors), timeout=END_S)
            for actor in actors:
                ray.kill(actor)


def answers(asked: list[Any], seconds: float | None = ANSWER_S) -> list[Any]:
    """What actors return, in the order of `asked`.

    Args:
        asked: references to their results.
        seconds: for each of them; None: as long as its node lives.

    Raises:
        IrisError: the first of their errors, after each was logged; StageFailed if an actor was lost.
    """
    found, failed = [], []
    for reference in asked:
        try:
            found.append(ray.get(reference, timeout=seconds))
        except RayError as error:
            failed.append(explained(error))
            log.error("%s", failed[-1])
    if failed:
        raise failed[0]
    return found


def explained(error: RayError) -> IrisError:
    """An error of Ray as one of ours: what the actor raised, or how it was lost."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, IrisError) else StageCrashed(f"an actor on Ray: {error.cause!r}")
    if isinstance(error, GetTimeoutError):
        return StageFailed(f"a node of the Ray cluster gives no answer within {ANSWER_S:g} s: run again to resume")
    last = str(error).strip().splitlines()[-1]
    return StageFailed(f"a node of the Ray cluster was lost, or cannot run actors ({last}): is iris installed there?")


@contextmanager
def _placed(execution: Execution, share: Share) -> Iterator[PlacementGroup]:
    """Takes `share` of as many nodes as are asked, until the block ends; waits for nodes that are in use, and says so.

    Raises:
        ServiceError: nodes were lost meanwhile, and too few are left.
    """
    group = placement_group([{share.resource: float(share.amount)}] * execution.nodes, strategy="STRICT_SPREAD")
    try:
        seconds = PLACED_S
        while not group.wait(timeout_seconds=seconds):
            share_of(execution)
            notify(f"the Ray cluster is in use: waiting for {execution.nodes} × {share.amount} {share.resource}")
            seconds = NOTIFY_EVERY_S
        yield group
    finally:
        remove_placement_group(group)


def _check_nodes(store: Path, actors: list[Any]) -> None:
    """Checks that the nodes have the versions of this machine and share the store; logs each that does not.

    Raises:
        IrisError: one of them does not.
    """
    answers([actor.check_versions.remote(probe.versions_here()) for actor in actors])
    if mirror := mirrors.split(store):
        answers([actor.check_bucket.remote(mirrors.uri_of(mirror[0])) for actor in actors])
        return
    token, written = probe.write_probe(store), []
    try:
        written = answers([actor.check_probe.remote(store, token) for actor in actors])
    finally:
        probe.end_probe(store, token, written)


def _options(resource: str, amount: int) -> dict[str, int]:
    """What an actor takes of its node."""
    return {"num_cpus": 0, "num_gpus": 0} | {f"num_{resource.lower()}s": amount}


def forwarded() -> dict[str, str]:
    """The settings of libraries in this environment that processes on other nodes get, too; no secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(FORWARDED) and not SECRET.intersection(name.split("_"))
    }


def _installed_gpus() -> list[gpus.Gpu]:
    return gpus.installed()


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _counts(nodes: list[dict[str, Any]], resource: str) -> list[int]:
    """How much of a resource the nodes have, the most first."""
    return sorted((int(node["Resources"].get(resource, 0)) for node in nodes), reverse=True)


def _listed(nodes: list[dict[str, Any]]) -> str:
    """What each node has: "10.0.0.1: 8 GPU, 64 CPU; 10.0.0.2: nothing"."""
    known = []
    for node in nodes:
        has = [f"{int(node['Resources'][name])} {name}" for name in (GPU, "CPU") if name in node["Resources"]]
        known.append(f"{node['NodeManagerAddress']}: {', '.join(has) or 'nothing'}")
    return "; ".join(known)
