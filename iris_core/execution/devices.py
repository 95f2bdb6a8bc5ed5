"""How many processes a stage has on this machine, and the GPUs of each. Loads no torch: launching asks it."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from itertools import takewhile

from iris_core.common.errors import ConfigError
from iris_core.store import Execution

VISIBLE = "CUDA_VISIBLE_DEVICES"
LIST_S = 60.0  # for nvidia-smi on a machine whose drivers are not loaded


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        return installed_gpus()
    return list(takewhile(_is_gpu, (name.strip() for name in chosen.split(","))))  # CUDA ignores what follows


@cache
def installed_gpus() -> list[str]:
    """The numbers of this machine's GPUs, by nvidia-smi; none where there is no such program."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LIST_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed.stdout.splitlines() if line[:3] == "GPU")]


def processes(execution: Execution) -> int:
    """How many processes of a stage this machine has: one a GPU. Without GPUs as many as asked for, or one.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    found, wanted = len(gpus()), execution.gpus_per_node
    if wanted and 0 < found < wanted:
        raise ConfigError(
            f"execution.gpus_per_node: {wanted}, but this machine shows {found} GPUs ({VISIBLE}): ask for fewer"
        )
    return wanted or max(found, 1)


def engine_gpus(execution: Execution) -> list[list[str]]:
    """The GPUs of each sampling engine on this machine; without GPUs an empty list for each engine.

    Raises:
        ConfigError: there are fewer devices than one engine needs.
    """
    count, size, names = processes(execution), execution.tensor_parallel, gpus()
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
    return limited | ({VISIBLE: ",".join(names)} if names else {})


def _is_gpu(name: str) -> bool:
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))
