"""Sharded models of many classes compute the log-probs and gradients of whole ones; the rest is refused in a line."""

from __future__ import annotations

import json
import subprocess

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from iris_core.common.errors import ModelError
from iris_core.modeling import sharding
from tests.iris_core.modeling.test_architectures import configuration, saved
from tests.iris_core.training.on_ranks import torchrun

pytestmark = pytest.mark.integration

KINDS = [
    "cohere2",
    "deepseek_v3",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2_moe",
    "qwen3",
]


def test_sharded_models_equal_whole_ones(tmp_path):
    folders = {kind: tmp_path / kind for kind in KINDS}
    for kind, folder in folders.items():
        saved(configuration(kind), folder)
    models, results = tmp_path / "folders.json", tmp_path / "results.json"
    models.write_text(json.dumps(folders, default=str))
    module = "tests.iris_core.modeling.sharded_models"
    subprocess.run([*torchrun(2), "-m", module, models, results], check=True)
    assert json.loads(results.read_text()) == dict.fromkeys(KINDS)


def test_what_cannot_be_sharded_is_refused_in_a_line():
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ModelError, match=r"layers.0.mlp.up_proj.weight of LlamaForCausalLM is in several layers"):
        sharding.shard(model, None)
    model.scale = nn.Parameter(model.lm_head.weight[0, 0].detach())
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(model.model.layers[0].mlp.up_proj.weight.detach())
    with pytest.raises(ModelError, match="scale of LlamaForCausalLM is a single number"):
        sharding.shard(model, None)
