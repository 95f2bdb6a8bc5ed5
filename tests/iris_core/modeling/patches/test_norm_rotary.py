"""The patched norm and rotary embedding: outputs and gradients are those of transformers, and less is kept."""

import copy
import importlib

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from iris_core.modeling.architectures import probe
from iris_core.modeling.kernels.norm_rotary import rms_norm, rotary
from iris_core.modeling.loading import load_policy
from iris_core.modeling.patches.norm_rotary import fuse_norm_rotary, restored_rotary
from iris_core.store import Artifact, Policy
from tests.iris_core.modeling.patches.upstream import code_of, formatted

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


CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
UPSTREAM = {
    "apply_rotary_pos_emb": """
        cos = cos.unsqueeze(unsqueeze_dim)
        sin = sin.unsqueeze(unsqueeze_dim)
        q_embed = (q * cos) + (rotate_half(q) * sin)
        k_embed = (k * cos) + (rotate_half(k) * sin)
        return q_embed, k_embed
    """,
    "rotate_half": """
        x1 = x[..., : x.shape[-1] // 2]
        x2 = x[..., x.shape[-1] // 2 :]
        return torch.cat((-x2, x1), dim=-1)
    """,
    "{}RMSNorm.forward": """
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)
    """,
}


@pytest.fixture
def own_rotary():
    """The rotary embedding of transformers, before and after."""
    with restored_rotary():
        for name in CLASSES:
            modeling(name).apply_rotary_pos_emb = apply_rotary_pos_emb
        yield


def modeling(name):
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("function", UPSTREAM)
def test_transformers_computes_what_is_replaced(name, function):
    """Where this fails, transformers has changed the function: change the kernel, or remove the patch."""
    found = code_of(modeling(name), function.format(CLASSES[name]))
    assert found == formatted(UPSTREAM[function])


@pytest.mark.usefixtures("own_rotary")
def test_a_probe_of_an_architecture_leaves_no_patch_behind():
    probe(LlamaConfig(**SIZES))
    assert modeling("llama").apply_rotary_pos_emb is apply_rotary_pos_emb


@pytest.mark.usefixtures("own_rotary")
def test_the_rotary_embedding_is_restored_after_an_error():
    def fail_after_the_patch():
        with restored_rotary():
            fuse_norm_rotary(AutoModelForCausalLM.from_config(Qwen2Config(**SIZES)))
            assert modeling("qwen2").apply_rotary_pos_emb is rotary
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_the_patch()
    assert modeling("qwen2").apply_rotary_pos_emb is apply_rotary_pos_emb


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
        return rms_norm(x, weight, 1e-3)

    def expected(x, weight):
        return torch.func.functional_call(theirs, {"weight": weight}, x)

    found = with_gradients(ours, x, theirs.weight)
    for one, other in zip(found, with_gradients(expected, x, theirs.weight), strict=True):
        assert one.dtype == other.dtype
        scale = other.abs().max().item()
        torch.testing.assert_close(one / scale, other / scale, **TOLERANCE[dtype])


def test_the_norm_keeps_its_input_in_its_own_dtype():
    kept = []
    x = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, torch.ones(8, dtype=torch.bfloat16), 1e-5)
    assert sorted((t.dtype, t.shape) for t in kept if t.dim() == 2 and t.shape[1] > 1) == [(torch.bfloat16, (3, 8))]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_rotary_embedding_and_its_gradients(dtype):
    torch.manual_seed(0)
    query, key = torch.randn(2, 7, 4, 6).to(dtype), torch.randn(2, 7, 2, 6).to(dtype)
    angles = torch.randn(2, 7, 3).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def rotated(function):
        return with_gradients(lambda q, k: function(q.transpose(1, 2), k.transpose(1, 2), cos, sin), query, key)

    for one, other in zip(rotated(rotary), rotated(apply_rotary_pos_emb), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[dtype])


@pytest.mark.usefixtures("own_rotary")
@pytest.mark.parametrize(
    ("config", "norms"), [(LlamaConfig, 5), (MistralConfig, 5), (Qwen2Config, 5), (Qwen3Config, 9)]
)
def test_a_model_computes_the_same_with_fewer_functions_in_its_graph(config, norms):
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config(**SIZES)).eval()
    faster = copy.deepcopy(plain)
    ids = torch.tensor([[3, 9, 27, 81, 5]])
    expected = plain(ids).logits
    expected.logsumexp(-1).sum().backward()
    fuse_norm_rotary(faster)
    found = faster(ids).logits
    found.logsumexp(-1).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = zip(faster.named_parameters(), plain.named_parameters(), strict=True)
    for (name, one), (_, other) in gradients:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert functions(found)["_RmsNormBackward"] == norms
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


def test_a_model_of_another_class_stays_unchanged():
    model = AutoModelForCausalLM.from_config(CohereConfig(**SIZES))
    fuse_norm_rotary(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.usefixtures("own_rotary")
def test_a_policy_is_loaded_with_the_faster_functions(tiny_model):
    policy = Policy(model=Artifact.of(tiny_model))
    logits = load_policy(policy, "float32")(torch.tensor([[3, 9, 27]])).logits
    assert functions(logits)["_RmsNormBackward"] == 5
    assert functions(logits)["_RotaryBackward"] == 2
