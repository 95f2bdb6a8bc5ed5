"""Fused LoRA layers compute what PEFT's do: outputs, input gradients and adapter gradients."""

import copy
import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import layer as peft_layer
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from iris_core.modeling.kernels import lora
from iris_core.modeling.kernels.lora import FrozenLayer, _LoraLinears, lora_linears, lora_swiglu
from iris_core.modeling.patches.lora import SWIGLU, _forward_swiglu, fuse_lora
from tests.iris_core.modeling.patches.upstream import code_of, formatted

pytestmark = pytest.mark.unit

PEFT_FORWARD = """
    self._check_forward_args(x, *args, **kwargs)
    adapter_names = kwargs.pop("adapter_names", None)
    variant_kwargs = {k: kwargs.pop(k, None) for k in VARIANT_KWARG_KEYS}
    if self.disable_adapters:
        if self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
    elif adapter_names is not None:
        result = self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **variant_kwargs, **kwargs)
    elif self.merged:
        result = self.base_layer(x, *args, **kwargs)
    else:
        result = self.base_layer(x, *args, **kwargs)
        torch_result_dtype = result.dtype
        lora_A_keys = self.lora_A.keys()
        for active_adapter in self.active_adapters:
            if active_adapter not in lora_A_keys:
                continue
            lora_A = self.lora_A[active_adapter]
            lora_B = self.lora_B[active_adapter]
            dropout = self.lora_dropout[active_adapter]
            scaling = self.scaling[active_adapter]
            x = self._cast_input_dtype(x, lora_A.weight.dtype)
            if active_adapter not in self.lora_variant:
                result = result + lora_B(lora_A(dropout(x))) * scaling
            else:
                result = self.lora_variant[active_adapter].forward(
                    self, active_adapter=active_adapter, x=x, result=result, **variant_kwargs, **kwargs
                )
        result = result.to(torch_result_dtype)
    return result
"""


def test_peft_computes_what_is_replaced():
    """Where this fails, PEFT has changed its layer: change the kernel and what counts as plain, or remove the patch."""
    assert code_of(peft_layer, "Linear.forward") == formatted(PEFT_FORWARD)


@pytest.mark.parametrize("block", [LlamaMLP, MistralMLP, Qwen2MLP])
def test_transformers_computes_a_swiglu_block_as_it_is_replaced(block):
    assert SWIGLU in inspect.getsource(block.forward)


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


@pytest.mark.parametrize(("matmul_rows", "settings"), [(512, {}), (3, {}), (512, {"use_rslora": True})])
def test_equals_peft_in_fp32(tiny_model, monkeypatch, matmul_rows, settings):
    monkeypatch.setattr(lora, "MATMUL_ROWS", matmul_rows)
    model = adapted(tiny_model, **settings)
    expected, gradients = logits_and_gradients(model)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    fuse_lora(model)
    blocks = [module for module in model.modules() if hasattr(module, "gate_proj")]
    assert [block.forward.__func__ for block in blocks] == 2 * [_forward_swiglu]
    found, fused = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(gradients) == 2 * 7 * 2  # two factors of seven layers in two blocks
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-5)


class Scaled(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x) * 0.5) * self.up_proj(x))


def test_a_block_of_another_form_stays_unchanged(tiny_model):
    """Falcon-H1 has the same layers by the same names, and scales in between."""
    model = adapted(tiny_model)
    for module in model.modules():
        if type(module) is LlamaMLP:
            module.__class__ = Scaled
    expected, gradients = logits_and_gradients(model)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    fuse_lora(model)
    found, fused = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-5)


def test_an_output_may_be_changed_in_place(tiny_model):
    """As in Gemma 3n: the output of a layer is not a view."""
    model = adapted(tiny_model)
    fuse_lora(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    output = layer(torch.ones(1, 3, 64, requires_grad=True))
    output.mul_(2).sum().backward()
    assert layer.lora_B["default"].weight.grad.abs().max() > 0


def test_stays_close_to_peft_in_bf16_and_keeps_fp32_gradients(tiny_model):
    model = adapted(tiny_model, torch.bfloat16)
    expected, _ = logits_and_gradients(model)
    fuse_lora(model)
    found, gradients = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def random_layer(inputs, outputs, scaling):
    """A frozen layer with a bias, and its A and B of rank 2, in fp64."""
    sizes = (outputs, inputs), (outputs,), (2, inputs), (outputs, 2)
    weight, bias, down, up = (torch.randn(*size, dtype=torch.float64) for size in sizes)
    return FrozenLayer(weight, bias, scaling), down.requires_grad_(), up.requires_grad_()


def test_gradients_of_layers_with_the_same_input_are_those_of_finite_differences():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    sizes = (5, 4, 1.7), (5, 2, 0.6), (5, 3, -1.1)
    (q, *of_q), (k, *of_k), (v, *of_v) = (random_layer(*size) for size in sizes)
    assert torch.autograd.gradcheck(lambda x, *factors: lora_linears(x, (q, k, v), factors), (x, *of_q, *of_k, *of_v))


def test_q_k_and_v_of_a_layer_are_computed_together(tiny_model, monkeypatch):
    model = adapted(tiny_model)
    fuse_lora(model)
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
    fuse_lora(model)
    calls = [(0, 2), (0, 2), (1, 0), (0, 1), (0, 0), (0, 1), (1, 1)]  # which input, which layer
    for x, layer in calls:
        torch.testing.assert_close(layers[layer]((first, second)[x]), expected[x][layer])


def test_a_copy_of_a_model_has_its_own_weights(tiny_model):
    model = adapted(tiny_model)
    fuse_lora(model)
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
        lambda x, *factors: lora_swiglu(x, (gate, up, down), factors),
        (x, *first, *second, *last),
    )


def test_a_swiglu_block_keeps_no_more_than_its_input_and_its_two_inner_outputs():
    frozen, *factors = random_layer(5, 400, 1.0)
    last, *last_factors = random_layer(400, 5, 1.0)
    kept = []
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        lora_swiglu(x, (frozen, frozen, last), [*factors, *factors, *last_factors])
    assert kept.count((7, 400)) == 2


def test_a_block_whose_adapter_is_merged_for_good_still_computes_it(tiny_model):
    model = adapted(tiny_model)
    expected, _ = logits_and_gradients(model)
    fuse_lora(model)
    merged = model.merge_and_unload()
    found = merged(torch.tensor([[3, 9, 27, 81], [5, 25, 125, 7]])).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_switched_off_adapter_is_not_there(tiny_model):
    model = adapted(tiny_model)
    fuse_lora(model)
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
    fuse_lora(model)
    found, _ = logits_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
