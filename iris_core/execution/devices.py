"""How many processes a stage has on this machine, and the GPUs of each. Loads no torch: launching asks it."""

from __future__ import annotations

import os

from iris_core.common import gpus
from iris_core.common.errors import ConfigError
from iris_core.store import Execution


def processes(execution: Execution) -> int:
    """How many processes of a stage this machine has: one a GPU. Without GPUs as many as asked for, or one.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    found, wanted = len(gpus.visible()), execution.gpus_per_node
    if wanted and 0 < found < wanted:
        raise ConfigError(
            f"execution.gpus_per_node: {wanted}, but this machine shows {found} GPUs ({gpus.VISIBLE}): ask for fewer"
        )
    return wanted or max(found, 1)


def on_gpus(execution: Execution) -> bool:
    """Whether the stages of a run that use GPUs find some where they run: here, or on the nodes of its Ray cluster.

    Raises:
        IrisError: the cluster cannot be used, or is too small.
    """
    if execution.launcher == "ray":
        from iris_core.execution import ray_cluster  # Ray is optional

        with ray_cluster.connected(execution):
            return ray_cluster.share_of(execution).resource == ray_cluster.GPU
    import torch

    return torch.cuda.is_available()


def engine_gpus(execution: Execution) -> list[list[str]]:
    """The GPUs of each sampling engine on this machine; without GPUs an empty list for each engine.

    Raises:
        ConfigError: there are fewer devices than one engine needs.
    """
    count, size, names = processes(execution), execution.tensor_parallel, gpus.visible()
    if size > count:
        raise ConfigError(
            f"execution.tensor_parallel: {size}, but a stage has {count} devices on this machine: "
            "set it lower, or execution.gpus_per_node higher"
        )
    return [names[start : start + size] for start in range(0, count - size + 1, size)]


def environment(count: int, names: list[str]) -> dict[str, str]:
    """Variables for one of `count` processes that share this machine: its threads, and the GPUs that it sees."""
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    limited = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} if count > 1 else {}
    return limited | ({gpus.VISIBLE: ",".join(names)} if names else {})
