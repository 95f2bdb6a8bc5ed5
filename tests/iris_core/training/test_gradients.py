"""Gradients on several ranks are those of one process, also of parameters that no row reaches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from iris_core.data.packing import Group, build_row
from iris_core.modeling.attention.interface import GROUPED
from iris_core.modeling.scoring import IDLE, response_logprobs
from iris_core.modeling.sharding import PARTS, nothing_reached, shard
from iris_core.training import gradients
from iris_core.training.gradients import sum_gradients

pytestmark = pytest.mark.unit
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}


class Towers(LlamaForCausalLM):
    """A model with weights that no row of tokens reaches, in a layer and outside."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.tower = nn.Linear(16, 16)
        self.model.layers[0].tower = nn.Linear(16, 16)


@pytest.fixture
def two_ranks(monkeypatch) -> Iterator[None]:
    """This process takes itself for one of two ranks, whose other one has reached nothing."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(gradients.distributed, "world_size", lambda: 2)
    yield
    dist.destroy_process_group()


def gradients_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: each.full_tensor() if hasattr(each, "full_tensor") else each for name, each in found.items()}


@pytest.mark.parametrize("sharded", [False, True])
def test_what_no_rank_has_reached_takes_no_step(two_ranks, sharded):
    torch.manual_seed(0)
    plain = Towers(LlamaConfig(**SIZES, attn_implementation=GROUPED))
    torch.manual_seed(0)
    model = Towers(LlamaConfig(**SIZES, attn_implementation=GROUPED))
    if sharded:
        shard(model, init_device_mesh("cpu", (1,), mesh_dim_names=(PARTS,)))
    row = build_row([Group([3, 4], ([5, 6], [7]))], [0])
    for _ in range(2):
        for each in (plain, model):
            each.zero_grad()
            response_logprobs(each, row).sum().backward()
        sum_gradients(model)
        found, expected = gradients_of(model), gradients_of(plain)
        assert found.keys() == expected.keys() == {name for name, _ in plain.named_parameters() if "tower" not in name}
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name])


def test_a_pass_for_other_ranks_reaches_nothing(two_ranks):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation=GROUPED))
    shard(model, init_device_mesh("cpu", (1,), mesh_dim_names=(PARTS,)))
    with nothing_reached(model):
        (0 * response_logprobs(model, IDLE).sum()).backward()
    sum_gradients(model)
    assert not gradients_of(model)
