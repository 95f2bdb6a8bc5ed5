"""How much memory a training step takes on each device, by part: a formula, compared with measured peaks.

    devices = Devices(nodes=1, per_node=8, memory=80e9)
    sharding = sharding_of(sizes, training, "bfloat16", devices)
    memory = training_memory(sizes, training, "bfloat16", devices.sharing(sharding))
    memory.peak        # bytes
    memory.held        # what is allocated from the first step to the last, by part
    memory.moments     # what a step allocates in addition, by the moment at which it does

Light to import: flows and the stage `train` use it. The bytes that a token of a row leaves in a layer are those that
autograd saves on a CPU, counted for shapes of six families, and a rest fitted to peaks measured on an H200, where the
model is not sharded (shapes of Mistral-7B and Qwen2.5-3B, 4 to 32 layers, rows of 4,032 and 8,064 tokens:
`docs/operations.md`). Of experts the bytes were counted alone; state-space and convolution layers were not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iris_core.common.errors import ConfigError
from iris_core.config import TrainingPart
from iris_core.modeling.kernels.tiles import CPU_TILE, GPU_TILE
from iris_core.pipeline.sizes import Sizes

Sharding = Literal["none", "full", "hybrid"]

FP32 = 4  # bytes
STATES = {"rmsprop": 1, "adamw": 2}  # fp32 numbers an optimiser keeps for each trained parameter
# numbers that a token leaves for backward in a layer, in multiples of the hidden size and of the inner width; beside
# these, attention keeps queries, keys, values and its result, and norms keep what they read (`_of_norms`)
BY_HIDDEN = 2.4
AUTOCAST = 5.5  # the same of fp32 weights under autocast, which copies hidden states for each matmul
BY_INNER = 4.0
FUSED_LORA = 2.0  # our kernel recomputes the others
HEAD = 14  # bytes a token, in multiples of the hidden size: final hidden states and their gradients
MOST = 0.9  # share of a device's memory that may be planned
CONTEXT = 0.8e9  # bytes that CUDA and its libraries hold on a device, measured on an H200
FRAGMENTS = 0.05  # of what is allocated: pieces between tensors that no other tensor fits into, assumed


KEPT_FREE = 0.11  # on CPUs, of what is allocated: free memory between tensors, measured as 0.03 to 0.22


@dataclass(frozen=True)
class Devices:
    """The devices that train together, one rank each.

    Attributes:
        nodes: machines.
        per_node: devices of each machine.
        memory: bytes of each device; None: of processes on CPUs, which share what their machine has.
    """

    nodes: int
    per_node: int
    memory: float | None

    @property
    def count(self) -> int:
        """All of them."""
        return self.nodes * self.per_node

    def sharing(self, sharding: Sharding) -> int:
        """How many of them hold one copy of the model together."""
        return {"none": 1, "hybrid": self.per_node, "full": self.count}[sharding]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        held: what is allocated from the first step to the last, by part.
        moments: what a step allocates in addition, by the moment at which it does; only one of them is there at a time.
    """

    held: dict[str, float]
    moments: dict[str, float]

    @property
    def peak(self) -> float:
        """The most that is allocated at once."""
        return sum(self.held.values()) + max(self.moments.values())

    @property
    def on_gpu(self) -> float:
        """The peak with fragments and with what CUDA holds."""
        return self.peak * (1 + FRAGMENTS) + CONTEXT

    @property
    def on_cpu(self) -> float:
        """The peak of a process on CPUs, with the free memory that malloc keeps."""
        return self.peak * (1 + KEPT_FREE)


def sharding_of(sizes: Sizes, training: TrainingPart, dtype: str, devices: Devices) -> Sharding:
    """What the ranks share: as `training.sharding` says, or for auto the first of none, hybrid and full that fits.

    Args:
        sizes: of the model.
        training: with tokens_per_batch as long as the longest row, and the packing that was chosen. A shared model
            takes packed rows alone.
        dtype: of the matmuls, "bfloat16" or "float32".
        devices: of all ranks. For auto, processes on CPUs share nothing.

    Raises:
        ConfigError: the model cannot be shared.
    """
    if devices.count == 1:
        return "none"
    if training.sharding in ("full", "hybrid") and training.packing == "separate":
        raise ConfigError(
            f"training.sharding: {training.sharding} needs packed rows, since all ranks must make the same passes, and "
            "this model is trained on separate ones: set training.sharding: none"
        )
    if training.sharding != "auto":
        return "full" if devices.nodes == 1 and training.sharding == "hybrid" else training.sharding
    if devices.memory is None or training.packing == "separate":
        return "none"
    wanted: list[Sharding] = ["none", "hybrid"] if devices.nodes > 1 else ["none"]
    for sharding in wanted:
        memory = training_memory(sizes, training, dtype, devices.sharing(sharding))
        if memory.on_gpu <= MOST * devices.memory:
            return sharding
    return "full"


def training_memory(sizes: Sizes, training: TrainingPart, dtype: str, sharing: int = 1, on_cpu: bool = False) -> Memory:
    """Memory of one rank that trains with matmuls in `dtype`.

    Args:
        sizes: of the model.
        training: method, optimiser, tokens in a row, gradient checkpointing.
        dtype: "bfloat16" or "float32".
        sharing: how many ranks hold one copy of the model together (`Devices.sharing`).
        on_cpu: the ranks are processes on CPUs.
    """
    width = 2 if dtype == "bfloat16" else FP32
    full = training.method == "full"
    trained = sizes.parameters if full else sizes.adapter
    held = {
        "weights": sizes.parameters * (FP32 if full else width) / sharing,
        "adapter": 0.0 if full else sizes.adapter * FP32 / sharing,
        "gradients": trained * FP32 / sharing,
        "optimizer states": trained * FP32 * STATES[training.optimizer] / sharing,
    }
    autocast = full and width < FP32 and sharing == 1  # sharded weights are gathered in the dtype of the matmuls
    weights = _sharded(sizes, full, width) if sharing > 1 else _whole(sizes, full, width if autocast else 0)
    inputs, inside = _activations(sizes, training, width, autocast)
    head = _head(sizes, training, CPU_TILE if on_cpu else GPU_TILE)
    return Memory(
        held=held,
        moments={
            "forward pass": weights["forward"] + inputs + head,
            "backward pass of the lm_head": weights["lm_head"] + inputs + head,
            "backward pass of the layers": weights["layers"] + inputs + inside + head,
        },
    )


def _whole(sizes: Sizes, full: bool, copied: int) -> dict[str, float]:
    """Copies of weights by pass, `copied` bytes each, and the lm_head's gradient of one row.

    Autocast keeps a copy of every matrix during the forward pass. The gradient is there beside the sum of other rows';
    one that is tied to the embedding is, until the embedding's is known, too.
    """
    gradient = sizes.lm_head * FP32 if full else 0
    return {
        "forward": float(sizes.matrices * copied),
        "lm_head": float(sizes.matrices * copied + gradient),
        "layers": float(sizes.matrices_in_layer * copied + (gradient if _tied(sizes) else 0)),
    }


def _sharded(sizes: Sizes, full: bool, width: int) -> dict[str, float]:
    """Weights that FSDP2 gathers by pass, and what their gradients take until each rank has its share of the sum.

    Two layers are there whole, the one that is computed and the next one. The gradient of a layer is there in the dtype
    of the matmuls, and in fp32 buffers to be reduced, its own and that of the layer before. An lm_head that is tied to
    the embedding stays whole until the backward pass ends, with its gradient.
    """
    gradient, reduced = (width, FP32) if full else (0, 0)
    layer, head = sizes.matrices_in_layer, sizes.lm_head
    return {
        "forward": float(2 * layer * width + head * width),
        "lm_head": float(head * (width + gradient + reduced)),
        "layers": float(
            layer * (2 * width + gradient + 2 * reduced) + (head * (width + gradient) if _tied(sizes) else 0)
        ),
    }


def _tied(sizes: Sizes) -> bool:
    """Whether the lm_head is the embedding."""
    return sizes.parameters - sizes.matrices < sizes.lm_head / 2


def _activations(sizes: Sizes, training: TrainingPart, width: int, autocast: bool) -> tuple[float, float]:
    """What a row keeps for backward, and what one layer recomputes in its backward pass."""
    full = training.method == "full"
    by_inner = FUSED_LORA if sizes.fused and not full else BY_INNER
    matmuls = (AUTOCAST if autocast else BY_HIDDEN) * sizes.hidden + 2 * sizes.attention
    feed_forward = by_inner * sizes.inner + 2 * sizes.experts * sizes.hidden  # what each expert reads and returns
    norms = _of_norms(sizes, full, width, FP32 if autocast else width)
    grouped = FP32 if autocast and sizes.experts else width  # transformers' grouped matmuls know no autocast
    inside = training.tokens_per_batch * (width * matmuls + grouped * feed_forward + norms)
    if not training.gradient_checkpointing:
        return sizes.layers * inside, 0.0
    kept = FP32 if autocast else width
    return float(sizes.layers * training.tokens_per_batch * sizes.hidden * kept), inside


def _of_norms(sizes: Sizes, full: bool, width: int, hidden_width: int) -> float:
    """Bytes that a token leaves in a layer's norms.

    Fused ones keep their input. Others keep it in fp32, and where their weight is trained the result, at most in fp32.

    Args:
        sizes: of the model.
        full: whether all weights are trained.
        width: bytes of a number in matmuls, queries and keys among them.
        hidden_width: the same of hidden states.
    """

    def kept(numbers: int, read: int) -> int:
        return numbers * (read if sizes.fused else FP32 * (1 + full))

    of_heads = kept(sizes.attention, width) if sizes.head_norms else 0
    return kept(sizes.norms * sizes.hidden, hidden_width) + of_heads


def _head(sizes: Sizes, training: TrainingPart, tile: tuple[int, int]) -> float:
    """Final hidden states, and one tile of logits in the model's dtype and in fp32."""
    rows, columns = tile
    logits = min(rows, training.tokens_per_batch) * columns * (2 + FP32)
    return float(HEAD * training.tokens_per_batch * sizes.hidden + logits)
