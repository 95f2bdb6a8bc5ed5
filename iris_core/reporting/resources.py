"""What an experiment needs of a machine, before anything runs: memory of each GPU by part, host memory, disk, traffic.

    needs = resources(load_recipe("recipe.yaml"), parse_machine("8xH100-80GB"))
    needs.check()        # ConfigError where training does not fit, with the settings that would

The formula of memory is `iris_core.training.memory`; times are not estimated. Generation is left to vLLM, which takes
what the weights leave free for its cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from iris_core.common.errors import ConfigError, IrisError
from iris_core.config import Experiment, TrainingPart
from iris_core.data import hub
from iris_core.modeling import loading
from iris_core.modeling.model_folder import check_adapter, check_config, read_config
from iris_core.modeling.sizes import Sizes, sizes_of
from iris_core.objectives.losses import OBJECTIVES
from iris_core.training.checkpoints import KEPT_CHECKPOINTS
from iris_core.training.memory import FP32, STATES, Memory, training_memory

MOST = 0.9  # share of a GPU's memory that may be planned
CONTEXT = 0.8e9  # bytes that CUDA and its libraries hold on a device, measured on an H200
FRAGMENTS = 0.05  # of what is allocated: pieces between tensors that no other tensor fits into, assumed
GB = 1e9
MACHINE = re.compile(r"(?:(?P<count>[1-9]\d*)x)?(?P<name>[A-Za-z][\w.-]*)-(?P<gb>[1-9]\d*)GB")


@dataclass(frozen=True)
class Machine:
    """The devices that train: how many, what they are called, and the memory of each in bytes."""

    count: int
    name: str
    memory: float

    def __str__(self) -> str:
        return f"{self.count} × {self.name} with {self.memory / GB:.0f} GB"


@dataclass(frozen=True)
class Resources:
    """What an experiment needs, in bytes.

    Attributes:
        machine: what it is planned for.
        sizes: of the model.
        memory: of training, on each device.
        host: main memory in which all ranks load the model.
        disk: files of the store, checkpoints included.
        traffic: what each device sends in an optimiser step.
        weights: of the model in a sampling engine.
        fitting: settings that would fit where the experiment's do not, with the share of the memory that they take.
    """

    machine: Machine
    sizes: Sizes
    memory: Memory
    host: float
    disk: float
    traffic: float
    weights: float
    fitting: dict[str, float]

    @property
    def needed(self) -> float:
        """On each device while it trains: what is allocated, fragments, and what CUDA holds."""
        return _needed(self.memory)

    @property
    def share(self) -> float:
        """Of each device's memory."""
        return self.needed / self.machine.memory

    def check(self) -> None:
        """Raises ConfigError where training takes more than `MOST` of a device's memory."""
        if self.share <= MOST:
            return
        settings = "; ".join(f"{setting} ({share:.0%})" for setting, share in self.fitting.items())
        nothing = "no setting of training makes it fit: take larger GPUs or another model"
        remedy = f"set {settings}" if settings else nothing
        raise ConfigError(
            f"training needs {self.needed / GB:.1f} GB on each of {self.machine}, {self.share:.0%} of it and more than "
            f"{MOST:.0%}: {remedy}"
        )


def parse_machine(text: str | None) -> Machine:
    """The machine that `text` names, as "8xH100-80GB"; None: the GPUs here.

    Raises:
        ConfigError: it names none, or there is no GPU here.
    """
    if text is None:
        if not torch.cuda.is_available():
            raise ConfigError("--gpus: there is no GPU here: name the machine to plan for, as in --gpus 8xH100-80GB")
        found = torch.cuda.get_device_properties(0)
        return Machine(torch.cuda.device_count(), found.name, float(found.total_memory))
    if not (match := MACHINE.fullmatch(text)):
        raise ConfigError(f"--gpus: {text!r} names no machine: write number, name and memory, as in 8xH100-80GB")
    return Machine(int(match["count"] or 1), match["name"], float(match["gb"]) * GB)


def resources(experiment: Experiment, machine: Machine) -> Resources:
    """What `experiment` needs on `machine`.

    Raises:
        ConfigError: the adapter's targets match no layer of the model.
        ModelError: the model's configuration cannot be read, or is not one that can be trained.
        ServiceError: the hub cannot be reached for it.
    """
    training, config = experiment.training, _config(experiment)
    dtype = "bfloat16" if experiment.model.dtype == "auto" else experiment.model.dtype
    sizes = _sizes(config, experiment, training)
    memory = training_memory(sizes, _with_longest_row(experiment, training), dtype, machine.count)
    full = training.method == "full"
    width = 2 if dtype == "bfloat16" else FP32
    trained = sizes.parameters if full else sizes.adapter
    state = trained * FP32 * (1 + STATES[training.optimizer])
    saved = sizes.parameters * width if full else sizes.adapter * FP32
    return Resources(
        machine=machine,
        sizes=sizes,
        memory=memory,
        host=machine.count * sizes.parameters * (FP32 if full else width),
        disk=experiment.iterations * saved + (KEPT_CHECKPOINTS + 1) * state,
        traffic=2 * (machine.count - 1) / machine.count * trained * FP32,
        weights=sizes.parameters * width,
        fitting=_fitting(config, experiment, dtype, machine) if _needed(memory) > MOST * machine.memory else {},
    )


def _config(experiment: Experiment) -> PreTrainedConfig:
    model = experiment.model
    folder = hub.local_folder(model)
    if folder is None:
        commit = hub.resolve_revision("model", model.path, model.revision)
        code = ["*.py"] if model.trust_remote_code else []
        folder = hub.download(model.path, model.revision, commit, ["config.json", *code])
    check_adapter(folder)
    check_config(folder, read_config(folder), model.trust_remote_code)
    return loading.load_config(folder, model.trust_remote_code)


def _sizes(config: PreTrainedConfig, experiment: Experiment, training: TrainingPart) -> Sizes:
    lora = training.lora if training.method == "lora" else None
    return sizes_of(config, lora, experiment.model.trust_remote_code)


def _with_longest_row(experiment: Experiment, training: TrainingPart) -> TrainingPart:
    """`training` with room in a row for the longest pair that the experiment takes, as it gets a row of its own."""
    data, responses = experiment.data, OBJECTIVES[experiment.objective.name].responses
    prompts = responses if training.packing == "separate" else 1
    generated = (responses - 1) * experiment.generation.max_new_tokens
    longest = prompts * data.max_prompt_tokens + data.max_response_tokens + generated
    return training.model_copy(update={"tokens_per_batch": max(longest, training.tokens_per_batch)})


def _fitting(config: PreTrainedConfig, experiment: Experiment, dtype: str, machine: Machine) -> dict[str, float]:
    """The settings with which training fits, and the share of the memory that it then takes, each share once."""
    found: dict[str, float] = {}
    for text, training in _alternatives(experiment.training):
        try:
            sizes = _sizes(config, experiment, training)
        except IrisError:  # no adapter fits this model
            continue
        memory = training_memory(sizes, _with_longest_row(experiment, training), dtype, machine.count)
        if (share := _needed(memory) / machine.memory) <= MOST and share not in found.values():
            found[text] = share
    return found


def _needed(memory: Memory) -> float:
    return memory.peak * (1 + FRAGMENTS) + CONTEXT


def _alternatives(training: TrainingPart) -> Iterator[tuple[str, TrainingPart]]:
    """Settings that need less memory, the ones that change the least first."""
    changes: list[dict[str, object]] = [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "tokens_per_batch": training.tokens_per_batch // 2},
        {"method": "lora"},
        {"method": "lora", "gradient_checkpointing": True},
    ]
    for change in changes:
        if other := {name: value for name, value in change.items() if getattr(training, name) != value}:
            text = " and ".join(f"training.{name}: {str(value).lower()}" for name, value in other.items())
            yield text, training.model_copy(update=other)


def rows(needs: Resources) -> list[tuple[str, str]]:
    """What is needed as lines of a table: part and size, the devices' memory first."""
    memory, moment = needs.memory, max(needs.memory.moments, key=needs.memory.moments.__getitem__)
    parts = {**memory.held, moment: memory.moments[moment]}
    lines = [(f"each GPU: {name}", _gb(size)) for name, size in parts.items() if size]
    lines.append(("each GPU: fragments, CUDA", _gb(needs.needed - memory.peak)))
    lines.append(
        ("each GPU: training in all", f"{_gb(needs.needed)}, {needs.share:.0%} of {_gb(needs.machine.memory)}")
    )
    lines.append(("each GPU: weights in the sampling engine", _gb(needs.weights)))
    lines.append(("host memory, while all ranks load the model", _gb(needs.host)))
    lines.append(("disk: models or adapters, checkpoints", _gb(needs.disk)))
    if needs.traffic:
        lines.append(("sent by each GPU in an optimiser step", _gb(needs.traffic)))
    return lines


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"
