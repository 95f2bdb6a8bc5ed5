"""The streamlined LoRA layers compute what PEFT's do: outputs, input gradients and adapter gradients."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from iris_core.modeling import lora
from iris_core.modeling.lora import _forward_swiglu, _Frozen, _LoraLinears, _LoraSwiglu, streamline

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


@pytest.mark.parametrize(("product_rows", "settings"), [(512, {}), (3, {}), (512, {"use_rslora": True})])
def test_equals_peft_in_fp32(tiny_model, monkeypatch, product_rows, settings):
    monkeypatch.setattr(lora, "PRODUCT_ROWS", product_rows)
    model = adapted(tiny_model, **settings)
    expected, gradients = logits_and_gradients(model)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    streamline(model)
    blocks = [module for module in model.modules() if hasattr(module, "gate_proj")]
    assert [block.forward.__func__ for block in blocks] == 2 * [_forward_swiglu]
    found, streamlined = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(gradients) == 2 * 7 * 2  # two factors of seven layers in two blocks
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(streamlined[name], gradient, rtol=1e-4, atol=1e-5)


class Scaled(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x) * 0.5) * self.up_proj(x))


def test_a_block_of_another_form_stays_as_it_is(tiny_model):
    """Falcon-H1 has the same layers by the same names, and scales in between."""
    model = adapted(tiny_model)
    for module in model.modules():
        if type(module) is LlamaMLP:
            module.__class__ = Scaled
    expected, gradients = logits_and_gradients(model)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    streamline(model)
    found, streamlined = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(streamlined[name], gradient, rtol=1e-4, atol=1e-5)


def test_an_output_may_be_changed_in_place(tiny_model):
    """As in Gemma 3n: what a layer gives is no view of something else."""
    model = adapted(tiny_model)
    streamline(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    output = layer(torch.ones(1, 3, 64, requires_grad=True))
    output.mul_(2).sum().backward()
    assert layer.lora_B["default"].weight.grad.abs().max() > 0


def test_stays_close_to_peft_in_bf16_and_keeps_fp32_gradients(tiny_model):
    model = adapted(tiny_model, torch.bfloat16)
    expected, _ = logits_and_gradients(model)
    streamline(model)
    found, gradients = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def random_layer(inputs, outputs, scaling):
    """A frozen layer with a bias, and its A and B of rank 2, in fp64."""
    sizes = (outputs, inputs), (outputs,), (2, inputs), (outputs, 2)
    weight, bias, down, up = (torch.randn(*size, dtype=torch.float64) for size in sizes)
    return _Frozen(weight, bias, scaling), down.requires_grad_(), up.requires_grad_()


def test_gradients_of_layers_with_the_same_input_are_those_of_finite_differences():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    sizes = (5, 4, 1.7), (5, 2, 0.6), (5, 3, -1.1)
    (q, *of_q), (k, *of_k), (v, *of_v) = (random_layer(*size) for size in sizes)
    assert torch.autograd.gradcheck(
        lambda x, *factors: _LoraLinears.apply(x, (q, k, v), *factors), (x, *of_q, *of_k, *of_v)
    )


def test_q_k_and_v_of_a_layer_are_computed_together(tiny_model, monkeypatch):
    model = adapted(tiny_model)
    streamline(model)
    together = []
    apply = _LoraLinears.apply
    monkeypatch.setattr(
        _LoraLinears, "apply", lambda x, frozen, *f: together.append(len(frozen)) or apply(x, frozen, *f)
    )
    model(torch.tensor([[3, 9, 27, 81]]))
    assert together == [3, 1] * 2  # q, k and v, then o, of two layers


def test_layers_that_are_called_together_depend_on_neither_order_nor_number_of_calls(tiny_model):
    model = adapted(tiny_model)
    attention = next(module for module in model.modules() if hasattr(module, "q_proj"))
    layers = attention.q_proj, attention.k_proj, attention.v_proj
    first, second = torch.randn(2, 5, attention.q_proj.in_features)
    expected = [[layer(x) for layer in layers] for x in (first, second)]
    streamline(model)
    calls = [(0, 2), (0, 2), (1, 0), (0, 1), (0, 0), (0, 1), (1, 1)]  # which input, which layer
    for x, layer in calls:
        torch.testing.assert_close(layers[layer]((first, second)[x]), expected[x][layer])


def test_a_copy_of_a_model_has_its_own_weights(tiny_model):
    model = adapted(tiny_model)
    streamline(model)
    expected, _ = logits_and_gradients(model)
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    found, _ = logits_and_gradients(copied)
    torch.testing.assert_close(found, expected)


def test_gradients_of_a_swiglu_block_are_those_of_finite_differences():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    sizes = (5, 4, 1.7), (5, 4, 0.6), (4, 5, -1.1)
    (gate, *first), (up, *second), (down, *last) = (random_layer(*size) for size in sizes)
    assert torch.autograd.gradcheck(
        lambda x, *factors: _LoraSwiglu.apply(x, (gate, up), (down,), *factors),
        (x, *first, *second, *last),
    )


def test_a_swiglu_block_keeps_no_more_than_its_input_and_its_two_inner_outputs():
    frozen, *factors = random_layer(5, 400, 1.0)
    last, *last_factors = random_layer(400, 5, 1.0)
    kept = []
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        _LoraSwiglu.apply(x, (frozen, frozen), (last,), *factors, *factors, *last_factors)
    assert kept.count((7, 400)) == 2


def test_a_block_whose_adapter_is_merged_for_good_still_computes_it(tiny_model):
    model = adapted(tiny_model)
    expected, _ = logits_and_gradients(model)
    streamline(model)
    merged = model.merge_and_unload()
    found = merged(torch.tensor([[3, 9, 27, 81], [5, 25, 125, 7]])).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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
