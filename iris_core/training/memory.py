"""How much memory a training step takes on each GPU, by part: a formula, compared with measured peaks.

    memory = training_memory(sizes, training, dtype="bfloat16", ranks=8)
    memory.peak        # bytes
    memory.held        # what is allocated from the first step to the last, by part
    memory.moments     # what a step allocates in addition, by the moment at which it does

Every rank holds the whole model. The bytes that a token of a row leaves in a layer were fitted to peaks measured on an
H200 (shapes of Mistral-7B and Qwen2.5-3B, 4 to 32 layers, rows of 4,032 and 8,064 tokens: `docs/operations.md`).
Experts, state-space and convolution layers were not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from iris_core.config import TrainingPart
from iris_core.modeling.kernels.logprobs import GPU_TILE
from iris_core.modeling.sizes import Sizes

FP32 = 4  # bytes
STATES = {"rmsprop": 1, "adamw": 2}  # fp32 numbers an optimiser keeps for each trained parameter
# numbers that a token leaves for backward in a layer, in multiples of the hidden size and of the inner width
KEPT = {"lora": (6.9, 2.0), "full": (12.0, 4.0)}  # the LoRA layers here recompute some of them
HEAD = 14  # bytes a token, in multiples of the hidden size: final hidden states and their gradients


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


def training_memory(sizes: Sizes, training: TrainingPart, dtype: str, ranks: int) -> Memory:
    """Memory of one rank that trains with matmuls in `dtype`.

    Args:
        sizes: of the model.
        training: method, optimiser, tokens in a row, gradient checkpointing.
        dtype: "bfloat16" or "float32".
        ranks: how many devices train together.
    """
    width = 2 if dtype == "bfloat16" else FP32
    full = training.method == "full"
    trained = sizes.parameters if full else sizes.adapter
    held = {
        "weights": float(sizes.parameters * (FP32 if full else width)),
        "adapter": float(sizes.adapter * FP32),
        "gradients": float(trained * FP32),
        "optimizer states": float(trained * FP32 * STATES[training.optimizer]),
    }
    copied = width if full and dtype == "bfloat16" else 0  # autocast keeps a copy of every fp32 matrix during forward
    inputs, inside = _activations(sizes, training, width)
    head = _head(sizes, training)
    return Memory(
        held=held,
        moments={
            "forward pass": sizes.matrices * copied + inputs + head,
            "backward pass": sizes.matrices_in_layer * copied + inputs + inside + head,
            "sum of gradients over ranks": float(trained * FP32 if ranks > 1 else 0),
        },
    )


def _activations(sizes: Sizes, training: TrainingPart, width: int) -> tuple[float, float]:
    """What a row keeps for backward, and what one layer recomputes in its backward pass."""
    by_hidden, by_inner = KEPT[training.method]
    inside = training.tokens_per_batch * width * (by_hidden * sizes.hidden + by_inner * sizes.inner)
    if not training.gradient_checkpointing:
        return sizes.layers * inside, 0.0
    return sizes.layers * training.tokens_per_batch * sizes.hidden * float(width), inside


def _head(sizes: Sizes, training: TrainingPart) -> float:
    """Final hidden states, and one tile of logits in the model's dtype and in fp32."""
    rows, columns = GPU_TILE
    tile = min(rows, training.tokens_per_batch) * columns * (2 + FP32)
    return float(HEAD * training.tokens_per_batch * sizes.hidden + tile)
