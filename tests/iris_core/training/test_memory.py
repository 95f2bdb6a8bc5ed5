"""The memory formula against peaks that were measured, and on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from iris_core.config import LoraPart, TrainingPart
from iris_core.data.packing import Group, build_row
from iris_core.modeling.attention.interface import GROUPED
from iris_core.modeling.patches.lora import fuse_lora
from iris_core.modeling.patches.norm_rotary import fuse_norm_rotary, restored_rotary
from iris_core.modeling.scoring import response_logprobs
from iris_core.modeling.sizes import sizes_of
from iris_core.pipeline.sizes import Sizes
from iris_core.training.memory import Devices, sharding_of, training_memory

pytestmark = pytest.mark.unit

MISTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
}
QWEN = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("kind", "layers", "method", "tokens", "checkpointing", "optimizer", "measured"),
    [  # bf16 on an H200, torch 2.11: the most that PyTorch had allocated, GB
        (MISTRAL, 4, "lora", 8064, False, "adamw", 6.904),
        (MISTRAL, 8, "lora", 8064, False, "adamw", 12.400),
        (MISTRAL, 4, "lora", 4032, False, "adamw", 4.676),
        (MISTRAL, 4, "lora", 8064, True, "adamw", 4.417),
        (MISTRAL, 4, "full", 8064, False, "rmsprop", 23.777),
        (MISTRAL, 4, "full", 8064, True, "rmsprop", 16.883),
        (MISTRAL, 8, "full", 8064, True, "rmsprop", 29.629),
        (QWEN, 6, "lora", 8064, False, "adamw", 5.741),
        (MISTRAL, 32, "lora", 8064, False, "adamw", 45.380),
    ],
)
def test_within_a_twentieth_of_what_was_measured(
    kind: dict[str, int], layers: int, method: str, tokens: int, checkpointing: bool, optimizer: str, measured: float
) -> None:
    config = (MistralConfig if kind is MISTRAL else Qwen2Config)(**kind, num_hidden_layers=layers)
    training = TrainingPart(
        method=method,
        lora=LoraPart(rank=16),
        tokens_per_batch=tokens,
        gradient_checkpointing=checkpointing,
        optimizer=optimizer,
    )
    sizes = sizes_of(config, training.lora if method == "lora" else None)
    assert training_memory(sizes, training, "bfloat16").peak / 1e9 == pytest.approx(measured, rel=0.05)


SHAPES: list[tuple[type[PreTrainedConfig], dict[str, int]]] = [  # a sixteenth of the models' widths
    (MistralConfig, {"hidden_size": 256, "intermediate_size": 896, "num_key_value_heads": 2}),  # Mistral-7B
    (LlamaConfig, {"hidden_size": 256, "intermediate_size": 688, "num_key_value_heads": 8}),  # Llama-2-7B
    (Qwen3Config, {"hidden_size": 160, "intermediate_size": 608, "num_key_value_heads": 2}),  # Qwen3-4B
    (Gemma2Config, {"hidden_size": 224, "intermediate_size": 896, "num_key_value_heads": 4}),  # Gemma-2-9B
    (MixtralConfig, {"hidden_size": 256, "intermediate_size": 448, "num_key_value_heads": 2, "num_local_experts": 4}),
]


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
@pytest.mark.parametrize("method", ["lora", "bfloat16", "autocast"])
def test_a_layer_keeps_what_is_planned(kind: type[PreTrainedConfig], shape: dict[str, int], method: str) -> None:
    """Counted in bytes that autograd saves, for tokens and layers that come in addition."""
    saved, planned = {}, {}
    for layers in (1, 2):
        config = kind(**SMALL, **shape, num_hidden_layers=layers)
        saved[layers] = saved_bytes(config, method, 384) - saved_bytes(config, method, 128)
        planned[layers] = planned_bytes(config, method, 384) - planned_bytes(config, method, 128)
    assert saved[2] - saved[1] == pytest.approx(planned[2] - planned[1], rel=0.1)


SMALL = {"vocab_size": 64, "num_attention_heads": 8, "head_dim": 32}


def planned_bytes(config: PreTrainedConfig, method: str, tokens: int) -> float:
    """Of the forward pass."""
    training = TrainingPart(
        method="lora" if method == "lora" else "full", tokens_per_batch=tokens, gradient_checkpointing=False
    )
    sharing = 2 if method == "bfloat16" else 1  # layers of a sharded model compute in bf16 throughout
    return training_memory(sizes_of(config, None), training, "bfloat16", sharing).moments["forward pass"]


def saved_bytes(config: PreTrainedConfig, method: str, tokens: int) -> int:
    """Of all tensors but weights that a forward pass keeps for backward."""
    dtype = torch.float32 if method == "autocast" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=GROUPED, dtype=dtype)
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with restored_rotary():
        fuse_norm_rotary(model)
        if method == "lora":
            model = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
            fuse_lora(model)
        row = build_row([Group([1] * (tokens // 2), ([2] * (tokens // 4), [3] * (tokens // 4)))], [0], "packed")
        rounded = torch.autocast("cpu", torch.bfloat16, enabled=method == "autocast")
        with rounded, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            response_logprobs(model, row)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    return sum(size for place, (size, _) in kept.items() if place not in own)


def test_sizes_on_paper() -> None:
    """A layer of this Mistral: 4096² (q, o) ·2 + 4096·1024 (k, v) ·2 + 3·4096·14336 = 218,103,808 in linear layers.

    Adapters of rank 16: 16 · (8192·2 + 5120·2 + 18432·3) = 1,310,720 a layer.
    """
    sizes = sizes_of(MistralConfig(**MISTRAL, num_hidden_layers=2), LoraPart(rank=16))
    assert sizes.matrices_in_layer == 218_103_808
    assert sizes.matrices == 2 * 218_103_808 + 32768 * 4096
    assert sizes.adapter == 2 * 1_310_720
    assert sizes.parameters == 2 * (218_103_808 + 2 * 4096) + 2 * 32768 * 4096 + 4096


def test_tied_weights_count_once() -> None:
    tied = sizes_of(Qwen2Config(**QWEN, num_hidden_layers=1), None)
    untied = sizes_of(Qwen2Config(**{**QWEN, "tie_word_embeddings": False}, num_hidden_layers=1), None)
    assert untied.parameters - tied.parameters == 151936 * 2048


def test_the_gradient_of_an_lm_head_is_there_beside_its_sum() -> None:
    """fp32, 32768 · 4096 weights of 4 bytes; where they are the embedding's, too, until the backward pass ends."""
    training = TrainingPart(method="full", tokens_per_batch=16)
    untied, tied = MistralConfig(**MISTRAL, num_hidden_layers=1), Qwen2Config(**QWEN, num_hidden_layers=1)
    for config, gradient, until_the_end in ((untied, 32768 * 4096 * 4, False), (tied, 151936 * 2048 * 4, True)):
        moments = training_memory(sizes_of(config, None), training, "float32").moments
        forward, head, layers = moments.values()
        assert head - forward == gradient
        assert layers - forward == (gradient if until_the_end else 0)


def test_full_training_on_paper() -> None:
    """fp32: weights, gradients and RMSprop's state are 12 bytes a parameter, AdamW's 16; two ranks hold half each."""
    sizes = sizes_of(MistralConfig(**MISTRAL, num_hidden_layers=1), None)
    for optimizer, each in (("rmsprop", 12), ("adamw", 16)):
        training = TrainingPart(method="full", optimizer=optimizer, tokens_per_batch=16)
        one, two = (training_memory(sizes, training, "float32", sharing) for sharing in (1, 2))
        assert sum(one.held.values()) == each * sizes.parameters
        assert sum(two.held.values()) == each * sizes.parameters / 2


def test_what_fsdp_gathers_on_paper() -> None:
    """bf16, all trained: two layers gathered (2 · 2 bytes), one gradient (2), two buffers (2 · 4); the tied lm_head."""
    training = TrainingPart(method="full", tokens_per_batch=16, gradient_checkpointing=True)
    untied = sizes_of(MistralConfig(**MISTRAL, num_hidden_layers=4), None)
    tied = sizes_of(Qwen2Config(**QWEN, num_hidden_layers=4), None)
    assert untied.lm_head == 32768 * 4096
    assert tied.lm_head == 151936 * 2048

    def gathered(sizes: Sizes) -> float:
        """Without activations of 16 tokens: inputs of 4 layers, one layer, the final states, a tile of logits."""
        moment = training_memory(sizes, training, "bfloat16", sharing=8).moments["backward pass of the layers"]
        inside = 2 * (4.4 * sizes.hidden + 2 * sizes.attention + 4 * sizes.inner)
        return moment - 16 * (2 * 4 * sizes.hidden + inside + 14 * sizes.hidden + 16384 * 6)

    assert gathered(untied) == pytest.approx(14 * 218_103_808)
    assert gathered(tied) == pytest.approx(14 * tied.matrices_in_layer + 4 * tied.lm_head)


@pytest.fixture(scope="module")
def mistral() -> Sizes:
    """Of all 32 layers: 7.25 B parameters."""
    return sizes_of(MistralConfig(**MISTRAL, num_hidden_layers=32), LoraPart(rank=16))


def test_auto_shares_as_little_as_fits(mistral: Sizes) -> None:
    full = TrainingPart(method="full", tokens_per_batch=8192, gradient_checkpointing=True)
    lora = full.model_copy(update={"method": "lora"})

    def found(training: TrainingPart, nodes: int, per_node: int, memory: float | None) -> str:
        return sharding_of(mistral, training, "bfloat16", Devices(nodes, per_node, memory))

    assert found(lora, 1, 8, 80e9) == "none"
    assert found(full, 1, 8, 80e9) == "full"  # 12 bytes a parameter are 87 GB
    assert found(full, 1, 8, 141e9) == "none"
    assert found(full, 2, 8, 80e9) == "hybrid"
    assert found(full, 4, 8, 20e9) == "full"  # an eighth is not little enough
    assert found(full, 1, 1, 80e9) == "none"
    assert found(full, 2, 2, None) == "none"
    assert found(full.model_copy(update={"packing": "separate"}), 1, 8, 80e9) == "none"


def test_sharding_that_is_set_stays(mistral: Sizes) -> None:
    full = TrainingPart(method="full", sharding="full")
    hybrid = TrainingPart(method="full", sharding="hybrid")
    assert sharding_of(mistral, full, "bfloat16", Devices(1, 2, None)) == "full"
    assert sharding_of(mistral, hybrid, "bfloat16", Devices(2, 2, None)) == "hybrid"
    assert sharding_of(mistral, hybrid, "bfloat16", Devices(1, 2, None)) == "full"  # one machine has nobody to differ
    assert sharding_of(mistral, full, "bfloat16", Devices(1, 1, None)) == "none"


def test_who_shares_a_copy() -> None:
    devices = Devices(nodes=2, per_node=8, memory=80e9)
    assert [devices.sharing(sharding) for sharding in ("none", "hybrid", "full")] == [1, 8, 16]
