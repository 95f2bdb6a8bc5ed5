"""The fused functions compute what transformers' own do: outputs and gradients, and keep less for backward."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from iris_core.modeling import fused
from iris_core.modeling.loading import load_policy
from iris_core.store import Artifact, Policy

pytestmark = pytest.mark.unit

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


@pytest.fixture
def own_rotary(monkeypatch):
    """What `fuse` replaces for the whole process is back afterwards."""
    import transformers.models as models

    for name in ("llama", "mistral", "qwen2"):
        module = getattr(getattr(models, name), f"modeling_{name}")
        monkeypatch.setattr(module, "apply_rotary_pos_emb", apply_rotary_pos_emb)


def with_gradients(function, *inputs):
    """The outputs, and the gradients of a fixed function of them."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(3)
    total = sum((value * torch.randn(value.shape, generator=generator).to(value.dtype)).sum() for value in outputs)
    return [*outputs, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_norm_and_its_gradients(dtype):
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(24, eps=1e-3).to(dtype)
    torch.nn.init.normal_(theirs.weight, mean=1.0)
    x = (torch.randn(2, 5, 24) * 3 + 1).to(dtype)

    def ours(x, weight):
        return fused._RmsNorm.apply(x, weight, 1e-3)

    def expected(x, weight):
        return torch.func.functional_call(theirs, {"weight": weight}, x)

    found = with_gradients(ours, x, theirs.weight)
    for one, other in zip(found, with_gradients(expected, x, theirs.weight), strict=True):
        assert one.dtype == other.dtype
        scale = other.abs().max().item()
        torch.testing.assert_close(one / scale, other / scale, **TOLERANCE[dtype])


def test_the_norm_keeps_its_input_as_it_is():
    kept = []
    x = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fused._RmsNorm.apply(x, torch.ones(8, dtype=torch.bfloat16), 1e-5)
    assert sorted((t.dtype, t.shape) for t in kept if t.dim() == 2 and t.shape[1] > 1) == [(torch.bfloat16, (3, 8))]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_rotary_embedding_and_its_gradients(dtype):
    torch.manual_seed(0)
    query, key = torch.randn(2, 7, 4, 6).to(dtype), torch.randn(2, 7, 2, 6).to(dtype)
    angles = torch.randn(2, 7, 3).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def turned(function):
        return with_gradients(lambda q, k: function(q.transpose(1, 2), k.transpose(1, 2), cos, sin), query, key)

    for one, other in zip(turned(fused.rotary), turned(apply_rotary_pos_emb), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[dtype])


@pytest.mark.usefixtures("own_rotary")
@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig, Qwen2Config])
def test_a_model_computes_the_same_with_fewer_functions_in_its_graph(config):
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config(**SIZES)).eval()
    faster = copy.deepcopy(plain)
    ids = torch.tensor([[3, 9, 27, 81, 5]])
    expected = plain(ids).logits
    expected.logsumexp(-1).sum().backward()
    fused.fuse(faster)
    found = faster(ids).logits
    found.logsumexp(-1).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = zip(faster.named_parameters(), plain.named_parameters(), strict=True)
    for (name, one), (_, other) in gradients:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert functions(found)["_RmsNormBackward"] == 5
    assert functions(found)["_RotaryBackward"] == 2
    assert functions(expected)["_RmsNormBackward"] == 0


def functions(tensor):
    """How often each function is in the graph behind `tensor`."""
    from collections import Counter

    seen, ahead = set(), [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    return Counter(node.name() for node in seen)


def test_a_model_of_another_class_stays_as_it_is():
    model = AutoModelForCausalLM.from_config(CohereConfig(**SIZES))
    fused.fuse(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.usefixtures("own_rotary")
def test_a_policy_is_loaded_with_the_faster_functions(tiny_model):
    policy = Policy(model=Artifact.of(tiny_model))
    logits = load_policy(policy, "float32")(torch.tensor([[3, 9, 27]])).logits
    assert functions(logits)["_RmsNormBackward"] == 5
    assert functions(logits)["_RotaryBackward"] == 2
