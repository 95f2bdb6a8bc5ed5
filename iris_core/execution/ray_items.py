"""The items of a stage on the nodes of a Ray cluster: a worker for each engine, wherever its GPUs are.

The stage's own process, which has the folder's lock, gives out the items (`iris_core.execution.items`). A lost node
costs the items that its workers had.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from iris_core.common.errors import ConfigError
from iris_core.execution.item_worker import WorkerLost
from iris_core.execution.ray_agent import EngineAgent
from iris_core.execution.ray_cluster import Share, answers, connected, share_of, started
from iris_core.store.inputs import artifacts
from iris_core.store.spec import Execution, Spec


class RayWorker:
    """A worker on a node of the cluster.

    Args:
        agent: the actor that runs it.
        node: the name of its node.
    """

    def __init__(self, agent: Any, node: str):
        self.agent, self.node = agent, node

    def handle(self, item: str) -> None:
        """Does an item and returns when its unit is written.

        Raises:
            WorkerLost: the worker or its node has ended.
            IrisError: the worker's own error.
        """
        try:
            ray.get(self.agent.handle.remote(item))
        except RayTaskError as error:
            if isinstance(error.cause, WorkerLost):
                raise WorkerLost(f"{error.cause} on {self.node}") from None
            raise error.cause from None
        except RayError as error:
            raise WorkerLost(f"was lost with its node {self.node}") from error

    def close(self) -> None:
        """The actor ends it, with all others (`ray_cluster.started`)."""


@contextmanager
def workers(spec: Spec, out: Path, items: int) -> Iterator[list[RayWorker]]:
    """A worker for each engine on the nodes that the spec asks for, until the block ends.

    Args:
        spec: the stage's.
        out: the stage's folder.
        items: how many there are; no worker is without one.

    Raises:
        IrisError: the cluster cannot be used, has too little for one engine, or a node lacks inputs of the stage.
    """
    execution = spec.execution
    with connected(execution, logs=True):
        share = share_of(execution)
        size = engine_size(execution, share)
        with started(EngineAgent, execution, out.parent, share, size, items) as agents:
            nodes = [place.node for place in answers([agent.place.remote() for agent in agents])]
            inputs, one_of_each = list(artifacts(spec)), agents[: execution.nodes]  # the first ones, see `started`
            answers([agent.check_inputs.remote(inputs, execution.patience) for agent in one_of_each], seconds=None)
            request = spec.model_dump_json()
            answers(
                [
                    agent.open.remote(spec.stage, request, out, f"{node}, worker {number}")
                    for number, (agent, node) in enumerate(zip(agents, nodes, strict=True))
                ]
            )
            yield [RayWorker(agent, node) for agent, node in zip(agents, nodes, strict=True)]


def engine_size(execution: Execution, share: Share) -> int:
    """How much of a node's share an engine takes.

    Raises:
        ConfigError: it is more than a node gives.
    """
    size = execution.tensor_parallel
    if size > share.amount:
        raise ConfigError(
            f"execution.tensor_parallel: {size}, but a stage has {share.amount} {share.resource} on each node: set it "
            "lower, or execution.gpus_per_node higher"
        )
    return size
