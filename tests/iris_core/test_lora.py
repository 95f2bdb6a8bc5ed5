"""The streamlined LoRA layers compute what PEFT's do: outputs, input gradients and adapter gradients."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from iris_core.lora import _LoraLinear, streamline

pytestmark = pytest.mark.unit


def adapted(folder, dtype=torch.float32, **settings):
    """A tiny model with an adapter whose second factor is not zero."""
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = get_peft_model(base, LoraConfig(**{**config, **settings}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def logits_and_gradients(model):
    logits = model(torch.tensor([[3, 9, 27, 81], [5, 25, 125, 7]])).logits.float()
    model.zero_grad()
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_equals_peft_in_fp32(tiny_model):
    model = adapted(tiny_model)
    expected, gradients = logits_and_gradients(model)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    streamline(model)
    found, streamlined = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(gradients) == 2 * 7 * 2  # two factors of seven layers in two blocks
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(streamlined[name], gradient, rtol=1e-4, atol=1e-5)


def test_stays_close_to_peft_in_bf16_and_keeps_fp32_gradients(tiny_model):
    model = adapted(tiny_model, torch.bfloat16)
    expected, _ = logits_and_gradients(model)
    streamline(model)
    found, gradients = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(1)
    x, weight, bias, down, up = (
        torch.randn(*shape, dtype=torch.float64)
        for shape in ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2))
    )
    leaves = [tensor.requires_grad_() for tensor in (x, down, up)]
    assert torch.autograd.gradcheck(
        lambda x, down, up: _LoraLinear.apply(x, weight, bias, down, up, 1.7), leaves
    )


def test_a_switched_off_adapter_is_not_there(tiny_model):
    model = adapted(tiny_model)
    streamline(model)
    ids = torch.tensor([[3, 9, 27, 81]])
    with model.disable_adapter():
        off = model(ids).logits
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(off, plain)
    assert (model(ids).logits - plain).abs().max() > 1e-2


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_layers_of_other_kinds_keep_their_own_forward(tiny_model, settings):
    model = adapted(tiny_model, **settings)
    expected, _ = logits_and_gradients(model)
    streamline(model)
    found, _ = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
