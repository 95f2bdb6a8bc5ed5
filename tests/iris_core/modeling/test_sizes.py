"""Sizes of models of other kinds than Llama, on paper, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3Config,
    T5Config,
)
from transformers.models.gemma3n import Gemma3nTextConfig

from iris_core.common.errors import ConfigError, ModelError
from iris_core.config import LoraPart
from iris_core.modeling.sizes import sizes_of

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}


def test_gpt2_whose_layers_are_conv1d() -> None:
    """A layer: 64·192 (q, k, v) + 64·64 + 2·64·256 = 49,152. The lm_head is the embedding; positions are no matrix."""
    sizes = sizes_of(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=32, vocab_size=500), None)
    assert sizes.matrices_in_layer == 49_152
    assert sizes.matrices == 2 * 49_152 + 500 * 64
    assert sizes.inner == 256


def test_experts() -> None:
    """All of them are matrices: 64·64·2 + 64·32·2 + 64·4 (router) + 4·3·64·96 = 86,272; a token passes two of four."""
    config = MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)
    sizes = sizes_of(config, None)
    assert sizes.matrices_in_layer == 86_272
    assert sizes.inner == 2 * 96
    assert sizes.experts == 2


@pytest.mark.parametrize(
    ("kind", "settings", "attention", "norms", "head_norms", "fused"),
    [
        (LlamaConfig, {"num_key_value_heads": 4}, 64 + 64, 2, False, True),
        (MistralConfig, {}, 64 + 32, 2, False, True),
        (Qwen3Config, {"head_dim": 32}, 128 + 64, 2, True, True),
        (Gemma3TextConfig, {"head_dim": 32}, 128 + 64, 4, True, False),
    ],
)
def test_what_norms_and_attention_keep(
    kind: Any, settings: dict[str, int], attention: int, norms: int, head_norms: bool, fused: bool
) -> None:
    sizes = sizes_of(kind(**{**SMALL, **settings}), None)
    assert sizes.attention == attention
    assert (sizes.norms, sizes.head_norms, sizes.fused) == (norms, head_norms, fused)
    assert not sizes.experts


def test_layers_without_attention_count_as_if_they_had_it() -> None:
    assert sizes_of(MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=500), None).attention == 2 * 64


def test_layers_of_different_widths() -> None:
    config = Gemma3nTextConfig(
        **{**SMALL, "intermediate_size": [96, 128]},
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=500,
        num_kv_shared_layers=0,
        head_dim=16,
        layer_types=["full_attention"] * 2,
        activation_sparsity_pattern=[0.0, 0.0],
    )
    assert sizes_of(config, None).inner == 128


def test_what_has_no_sizes_is_refused_in_one_line() -> None:
    with pytest.raises(
        ModelError, match=r"no causal language model can be built .*model_type 't5'.*use another model$"
    ):
        sizes_of(T5Config(), None)
    mamba = MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=100)
    with pytest.raises(ModelError, match="'all-linear' does not fit MambaForCausalLM: .*set training.method to full"):
        sizes_of(mamba, LoraPart())
    with pytest.raises(ConfigError, match=r"training.lora.targets: 'nope' fits no layer"):
        sizes_of(MixtralConfig(**SMALL), LoraPart(targets=["nope"]))
