"""What an experiment needs of a machine, before anything runs: memory of each device by part, disk, traffic, GPU-hours.

    sizes = recipe_sizes(experiment)               # iris_core.modeling.sizes
    needs = resources(experiment, sizes, parse_machine("8xH100-80GB"))
    needs.check()        # ConfigError where training does not fit, with the settings that would

The formula of memory is `iris_core.training.memory`, the hours are `iris_core.reporting.hours`. Light to import: the
flow shows this before generation starts. Generation is left to vLLM, which takes what the weights leave free for its
cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from iris_core.common import mirrors
from iris_core.common.errors import ConfigError
from iris_core.config import Experiment, TrainingPart
from iris_core.pipeline.sizes import Sizes
from iris_core.reporting.hours import Hours, hours, pair_tokens, trained_responses
from iris_core.reporting.machine import GB, Machine
from iris_core.training.checkpoints import KEPT_CHECKPOINTS
from iris_core.training.memory import (
    FP32,
    MOST,
    STATES,
    Devices,
    Memory,
    Sharding,
    sharding_of,
    training_memory,
)

RESPONSE_TOKEN = 8  # bytes of a token of a response: its id, and about four letters
MORE_GPUS = 8  # times as many at most, where more of them are proposed


@dataclass(frozen=True)
class Resources:
    """What an experiment needs, in bytes.

    Attributes:
        machine: what it is planned for.
        sizes: of the model.
        sharding: what the ranks of training share.
        memory: of training, on each device.
        host: main memory of a machine in which its ranks load the model.
        copied: main memory of a machine for the checkpoint that is written while training goes on.
        disk: files of the store, checkpoints included.
        responses: most bytes of the responses in the store; None where the number of prompts is not known.
        traffic: what each device sends: in a step where the model is not sharded, else for each row.
        copies: with hybrid sharding, what it sends to other machines besides.
        weights: of the model in a sampling engine, on each GPU.
        hours: GPU-hours by stage.
        assumptions: of the rows and of the hours.
        fitting: settings that would fit where the experiment's do not, with the share of the memory that they take.
    """

    machine: Machine
    sizes: Sizes
    sharding: Sharding
    memory: Memory
    host: float
    copied: float
    disk: float
    responses: float | None
    traffic: float
    copies: float
    weights: float
    hours: Hours
    assumptions: list[str]
    fitting: dict[str, float]

    @property
    def needed(self) -> float:
        """On each device while it trains, with what lies free between tensors and, on a GPU, what CUDA holds."""
        return self.memory.on_cpu if self.machine.devices.memory is None else self.memory.on_gpu

    @property
    def share(self) -> float | None:
        """Of each GPU's memory; None of processes on CPUs."""
        memory = self.machine.devices.memory
        return None if memory is None else self.needed / memory

    def check(self) -> None:
        """Raises ConfigError where training takes more than `MOST` of a GPU's memory."""
        if self.share is None or self.share <= MOST:
            return
        settings = ", or ".join(f"{setting} ({share:.0%})" for setting, share in self.fitting.items())
        nothing = "no setting of training makes it fit: take larger GPUs or another model"
        raise ConfigError(
            f"training needs {self.needed / GB:.1f} GB on each GPU of {self.machine}, {self.share:.0%} of it, where "
            f"{MOST:.0%} may be used: {f'to make it fit, {settings}' if settings else nothing}"
        )


def resources(
    experiment: Experiment,
    sizes: Sizes,
    machine: Machine,
    dtype: str = "bfloat16",
    pairs: int | None = None,
    prompts: int | None = None,
) -> Resources:
    """What `experiment` needs on `machine`.

    Args:
        experiment: the settings, with the packing that `prepare` found; `auto` counts as packed rows.
        sizes: of its model, with an adapter where it can have one.
        machine: the devices.
        dtype: of the matmuls.
        pairs: annotated pairs to train on; None: as many as the recipe says.
        prompts: without annotation; None: only the data says.

    Raises:
        ConfigError: `training.sharding` asks for what the packing does not allow.
    """
    pairs = pairs or experiment.data.max_pairs
    prompts = prompts if experiment.data.prompts_path and experiment.objective.learns_from_verdicts else 0
    pairs = None if pairs is None or prompts is None else pairs + prompts
    training, devices = experiment.training, machine.devices
    sharding, memory = _trained(experiment, training, sizes, machine, dtype)
    full, width = training.method == "full", 2 if dtype == "bfloat16" else FP32
    trained = sizes.parameters if full else sizes.adapter
    state = trained * FP32 * (1 + STATES[training.optimizer])
    saved = sizes.parameters * width if full else sizes.adapter * FP32
    found, assumptions = hours(experiment, sizes, machine.name, pairs)
    needs = Resources(
        machine=machine,
        sizes=sizes,
        sharding=sharding,
        memory=memory,
        host=devices.per_node * (memory.held["weights"] + memory.held["adapter"]),
        copied=state * _share_of_machine(sharding, devices),
        disk=experiment.iterations * saved + _checkpoints(experiment) * state,
        responses=_responses(experiment, pairs) if pairs else None,
        traffic=_traffic(sizes, trained * FP32, width, devices.sharing(sharding), devices.count),
        copies=_between_copies(trained * FP32, devices) if sharding == "hybrid" else 0.0,
        weights=sizes.parameters * width / experiment.execution.tensor_parallel,
        hours=found,
        assumptions=[*_assumed(training), *assumptions],
        fitting={},
    )
    fits = needs.share is None or needs.share <= MOST
    return needs if fits else replace(needs, fitting=_fitting(experiment, sizes, machine, dtype))


def _checkpoints(experiment: Experiment) -> int:
    """How many are on the disk at once: one is being written, and one more may be on its way to S3."""
    return KEPT_CHECKPOINTS + (2 if experiment.store.startswith(mirrors.SCHEME) else 1)


def _assumed(training: TrainingPart) -> list[str]:
    """What is not known before `prepare` has tried the model's class."""
    if training.packing != "auto":
        return []
    return [
        "training.packing: auto counts as packed rows; a model that `prepare` finds to need separate ones is not "
        "sharded (training.packing: separate plans for that)"
    ]


def _responses(experiment: Experiment, prompts: int) -> float:
    """Bytes of all responses to that many prompts that are trained on, each as long as it may be."""
    generation = experiment.generation
    samples = generation.responses if experiment.objective.learns_from_verdicts else 1
    count = prompts * samples + experiment.data.heldout
    return float(experiment.iterations * count * generation.max_new_tokens * RESPONSE_TOKEN)


def _trained(
    experiment: Experiment, training: TrainingPart, sizes: Sizes, machine: Machine, dtype: str
) -> tuple[Sharding, Memory]:
    """What the ranks share and what each of them needs, with rows as long as the longest pair, which gets its own."""
    longest = pair_tokens(experiment, trained_responses(experiment), training.packing == "separate")
    training = training.model_copy(update={"tokens_per_batch": max(longest, training.tokens_per_batch)})
    sharding = sharding_of(sizes, training, dtype, machine.devices)
    sharing = machine.devices.sharing(sharding)
    return sharding, training_memory(sizes, training, dtype, sharing, on_cpu=machine.devices.memory is None)


def _share_of_machine(sharding: Sharding, devices: Devices) -> float:
    """Of a checkpoint, what the ranks of one machine write; processes on CPUs write it without a copy."""
    if devices.memory is None:
        return 0.0
    sharing = devices.sharing(sharding)
    return min(sharing, devices.per_node) / sharing


def _traffic(sizes: Sizes, gradients: float, width: int, sharing: int, count: int) -> float:
    """Bytes that a device sends: without sharding the gradients, once in a step.

    With sharding it sends them for each row, and its part of the weights twice, for forward and backward.
    """
    if sharing == 1:
        return 2 * (count - 1) / count * gradients
    return (sharing - 1) / sharing * (2 * sizes.parameters * width + gradients)


def _between_copies(gradients: float, devices: Devices) -> float:
    """Bytes that a device sends for each row, to sum its part of the gradients over all machines."""
    return 2 * (devices.nodes - 1) / devices.nodes * gradients / devices.per_node


def _fitting(experiment: Experiment, sizes: Sizes, machine: Machine, dtype: str) -> dict[str, float]:
    """What makes training fit, and the share of the memory that it then takes, each share once."""
    found: dict[str, float] = {}
    for text, training, devices in _alternatives(experiment.training, machine):
        if training.method == "lora" and not sizes.adapter:
            continue
        _, memory = _trained(experiment, training, sizes, devices, dtype)
        assert devices.devices.memory is not None
        if (share := memory.on_gpu / devices.devices.memory) <= MOST and share not in found.values():
            found[text] = share
            if devices is not machine:
                break
    return found


def _alternatives(training: TrainingPart, machine: Machine) -> Iterator[tuple[str, TrainingPart, Machine]]:
    """Settings that need less memory, the ones that change the least first; then more GPUs."""
    changes: list[dict[str, object]] = [
        {"sharding": "full"},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "tokens_per_batch": training.tokens_per_batch // 2},
        {"method": "lora"},
        {"method": "lora", "gradient_checkpointing": True},
    ]
    shares_more = training.sharding in ("none", "hybrid") and training.packing != "separate"
    for change in changes[not shares_more :]:
        if other := {name: value for name, value in change.items() if getattr(training, name) != value}:
            text = " and ".join(f"training.{name}: {str(value).lower()}" for name, value in other.items())
            yield f"set {text}", training.model_copy(update=other), machine
    if training.sharding != "none":
        for times in range(2, MORE_GPUS + 1):
            more = machine.times(times)
            yield f"take {more}", training, more


def rows(needs: Resources) -> list[tuple[str, str]]:
    """What is needed as lines of a table: part and size, the devices' memory first."""
    memory, each = needs.memory, f"each {needs.machine.device}"
    moment = max(memory.moments, key=memory.moments.__getitem__)
    parts = {**memory.held, moment: memory.moments[moment]}
    lines = [(f"{each}: {name}", _gb(size)) for name, size in parts.items() if size]
    beside = "free between tensors" if needs.share is None else "fragments, CUDA"
    lines.append((f"{each}: {beside}", _gb(needs.needed - memory.peak)))
    lines.append((f"{each}: training in all", _gb(needs.needed) + _of(needs)))
    lines.append((f"{each}: weights in the sampling engine", _gb(needs.weights)))
    if needs.machine.devices.count > 1:
        lines.append(("training.sharding", needs.sharding))
        sent = "in an optimiser step" if needs.sharding == "none" else "for each row of a step"
        inside = ", inside its machine" if needs.sharding == "hybrid" else ""
        lines.append((f"{each} sends {sent}{inside}", _gb(needs.traffic)))
        if needs.copies:
            lines.append((f"{each} sends {sent}, to other machines", _gb(needs.copies)))
    lines.append(("main memory of a machine, while its ranks load the model", _gb(needs.host)))
    if needs.copied:
        lines.append(("main memory of a machine, while a checkpoint is written", _gb(needs.copied)))
    lines.append(("disk: models or adapters, checkpoints", _gb(needs.disk)))
    if needs.responses is not None:
        lines.append(("disk: responses", f"at most {_gb(needs.responses)}"))
    return lines + [(f"GPU-hours of {stage}, all iterations", _hours(found)) for stage, found in needs.hours.items()]


def _of(needs: Resources) -> str:
    memory = needs.machine.devices.memory
    return "" if memory is None else f", {needs.share:.0%} of {_gb(memory)}"


def _hours(found: float | str) -> str:
    return found if isinstance(found, str) else f"at most {found:,.1f}"


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"
