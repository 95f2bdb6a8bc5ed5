"""The machines that a run is planned for: named by the user, or the ones that its stages use."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from iris_core.common import gpus
from iris_core.common.errors import ConfigError
from iris_core.config import ExecutionPart
from iris_core.execution import ray_check
from iris_core.store import Execution
from iris_core.training.memory import Devices

GB = 1e9
MIB = 2**20  # the unit of nvidia-smi
NUMBER = r"[1-9]\d{0,4}"
NAMED = re.compile(
    rf"(?:(?:(?P<nodes>{NUMBER})x)?(?P<count>{NUMBER})x)?(?P<name>[A-Za-z][\w.-]*)-(?P<gb>{NUMBER})GB", re.ASCII
)
CPU = "CPU"
PROFILE_GB = re.compile(r"(\d+)gb")  # in the profile of a MIG device
IN_ONE = 8  # GPUs that one machine usually holds at most


@dataclass(frozen=True)
class Machine:
    """Devices of one kind: `name` of the GPU, or "CPU" for processes that share the main memory."""

    name: str
    devices: Devices

    def __str__(self) -> str:
        nodes, count, memory = self.devices.nodes, self.devices.per_node, self.devices.memory
        each = f"{count} × {self.name}"
        each += f" with {memory / GB:.0f} GB" if memory is not None else ""
        return f"{nodes} machines of {each}" if nodes > 1 else each

    def times(self, factor: int) -> Machine:
        """`factor` times as many devices: in one machine where it can hold them, else in more of them."""
        devices = self.devices
        inside = devices.nodes == 1 and factor * devices.per_node <= IN_ONE
        grown = {"per_node": factor * devices.per_node} if inside else {"nodes": factor * devices.nodes}
        return replace(self, devices=replace(devices, **grown))

    @property
    def device(self) -> str:
        """What one of the devices is called in a table."""
        return "process" if self.devices.memory is None else "GPU"


def parse_machine(text: str) -> Machine:
    """The machine that `text` names, as "8xH100-80GB", or several, as "2x8xH100-80GB".

    Raises:
        ConfigError: it names none.
    """
    if not (match := NAMED.fullmatch(text)):
        raise ConfigError(
            f"--gpus: {text!r} names no machine: write number, name and memory, as in 8xH100-80GB, or for several "
            "machines 2x8xH100-80GB"
        )
    devices = Devices(int(match["nodes"] or 1), int(match["count"] or 1), float(match["gb"]) * GB)
    return Machine(match["name"], devices)


def machine_of(execution: ExecutionPart) -> Machine:
    """What `execution` uses, GPUs or processes on CPUs: of this machine, or of the nodes of its Ray cluster.

    Raises:
        IrisError: the cluster cannot be used, or is too small.
    """
    if execution.launcher == "ray":
        given = ray_check.check(Execution(**execution.model_dump()))
        return _machine(given.gpu, execution.nodes, given.amount)
    names = gpus.visible()
    count = execution.gpus_per_node or max(1, len(names))
    if names and (profile := gpus.mig_profile(names[0])) and (found := PROFILE_GB.search(profile)):
        return Machine(f"MIG {profile}", Devices(1, count, float(found[1]) * GB))
    return _machine(gpus.find(names[0]) if names else None, 1, count)


def _machine(gpu: gpus.Gpu | None, nodes: int, count: int) -> Machine:
    if gpu is None:
        return Machine(CPU, Devices(nodes, count, None))
    return Machine(gpu["name"], Devices(nodes, count, float(gpu["memory.total"]) * MIB))
