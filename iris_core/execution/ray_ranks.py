"""The ranks of training on the nodes of a Ray cluster: a driver that starts torchrun on each of them.

    python -m iris_core.execution.ray_ranks --spec spec.json --out DIR

A placement group takes GPUs of as many nodes as `execution.nodes` says. On each of them an agent runs the command that
`iris_core.execution.launch` runs on one machine. Log lines and progress pass through this process to its parent. When
a rank, an agent or a node is lost, the others are ended and the stage fails; it resumes at its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from iris_core.common import progress
from iris_core.common.errors import IrisError, StageFailed
from iris_core.common.progress import Failure
from iris_core.execution.failure import cause, may_follow, rebuild, report
from iris_core.execution.ray_agent import Lines, Place, RankAgent
from iris_core.execution.ray_cluster import answers, connected, explained, share_of, started
from iris_core.store.spec import Execution

STAGE = "train"
LOOK_S = 1.0
SETTLE_S = 30.0  # after an error that may follow from the loss of another node: Ray notices it within this time
JOIN_S = 300  # for torchrun's agents to find each other


def main() -> None:
    """Trains, and exits with the stage's code."""
    parser = argparse.ArgumentParser("python -m iris_core.execution.ray_ranks", description="Train on a Ray cluster.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with the stage's spec")
    parser.add_argument("--out", type=Path, required=True, help="folder for the output, at this path on every node")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    try:
        train(arguments.spec.read_text(encoding="utf-8"), arguments.out.absolute())
    except IrisError as error:
        sys.exit(report(error))


def train(spec: str, out: Path) -> None:
    """Trains on as many nodes as the spec asks for.

    Args:
        spec: of the stage, as JSON.
        out: the stage's folder.

    Raises:
        IrisError: the stage's own error; ServiceError if the cluster cannot be used, StageFailed if a node was lost.
    """
    execution = Execution.model_validate(json.loads(spec).get("execution", {}))
    with connected(execution):
        share = share_of(execution)
        with started(RankAgent, execution, out.parent, share, share.amount, execution.nodes) as agents:
            places = answers([agent.place.remote() for agent in agents])
            streams = {
                agent.run.options(num_returns="streaming").remote(STAGE, spec, out, share.amount, options): place
                for agent, place, options in zip(agents, places, rendezvous(places), strict=True)
            }
            if error := follow(streams):
                raise error


def rendezvous(places: list[Place]) -> list[list[str]]:
    """torchrun's options at each place: the ranks meet at the first one."""
    options = {
        "--nnodes": len(places),
        "--rdzv-backend": "static",
        "--rdzv-conf": f"timeout={JOIN_S}",
        "--master-addr": places[0].address,
        "--master-port": places[0].port,
    }
    words = [str(word) for option in options.items() for word in option]
    return [[*words, "--node-rank", str(number)] for number in range(len(places))]


def follow(streams: dict[Any, Place]) -> IrisError | None:
    """Forwards what agents hand back until all have ended, or one has failed.

    A node that is lost makes the ranks of the others fail, and their errors may come first. So those are no answer
    until the other agents have ended, for a limited time.

    Args:
        streams: of `Lines`, by where they come from.

    Returns:
        The error that explains the others; None if all have succeeded.
    """
    found: list[IrisError] = []
    deadline = float("inf")
    while streams and time.monotonic() < deadline:
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=LOOK_S)
        for stream in ready:
            if error := _forward_next(stream, streams):
                deadline = min(deadline, time.monotonic() + (SETTLE_S if may_follow(error) else 0))
                found.append(error)
    return cause(found) if found else None


def _forward_next(stream: Any, streams: dict[Any, Place]) -> IrisError | None:
    """Forwards the next `Lines` of a stream, and forgets the stream at its end. Returns how its agent failed."""
    try:
        said: Lines = ray.get(next(stream))
    except StopIteration:
        del streams[stream]
        return None
    except RayTaskError as error:
        del streams[stream]
        return explained(error)
    except RayError:
        return StageFailed(f"{STAGE}: the node {streams.pop(stream).node} was lost: run again to resume")
    for line in said.log:
        print(line, flush=True)
    for text in said.events:
        event = json.loads(text)
        progress.emit(event.pop("event"), **event)
    if said.error is None:
        return None
    kind, message = said.error
    return rebuild(STAGE, Failure(kind=kind, message=message))


if __name__ == "__main__":
    main()
