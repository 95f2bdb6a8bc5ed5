"""What only a GPU runs: compiled kernels and FlexAttention, against separate plain forwards in fp32 on the CPU."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from iris_core.data.packing import Group, build_row
from iris_core.modeling.attention.interface import GROUPED
from iris_core.modeling.kernels import logprobs
from iris_core.modeling.kernels.logprobs import token_logprobs
from iris_core.modeling.patches.lora import fuse_lora
from iris_core.modeling.patches.norm_rotary import fuse_norm_rotary
from iris_core.modeling.scoring import response_logprobs
from iris_core.training.setup import make_deterministic
from tests.iris_core.separate import separate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

CUDA = torch.device("cuda")
SIZES = {
    "vocab_size": 96,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
MODELS = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"tie_word_embeddings": False, "sliding_window": None}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),
    "window": (MistralConfig, {"tie_word_embeddings": False, "sliding_window": 50}),
}
CAPPED = {
    "gemma2": (
        Gemma2Config,
        {
            "head_dim": 16,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 2.0,
            "sliding_window": 50,
        },
    ),
    "gpt_oss": (
        GptOssConfig,
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 50},
    ),
}


def groups(seed):
    """Groups of all sizes, from one token to more than a block of FlexAttention."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [(150, 200, 40), (1, 1, 0), (30, 17, 90), (140, 0, 5)]

    def ids(count):
        return torch.randint(3, 96, (count,), generator=draw).tolist()

    return [Group(ids(p + seed), (ids(a), ids(s))) for p, a, s in lengths]


def build(name):
    """A model with an adapter that is not zero."""
    config, settings = {**MODELS, **CAPPED}[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**{**SIZES, **settings}), attn_implementation=GROUPED)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def on_gpu(model, dtype=torch.float32):
    fast = copy.deepcopy(model)
    for name, parameter in fast.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.to(dtype)
    fuse_norm_rotary(fast.get_base_model())
    fuse_lora(fast)
    return fast.to(CUDA)


def with_gradients(model, values):
    weights = torch.linspace(-1, 1, values.numel(), device=values.device).view(values.shape)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return values.detach().cpu(), [
        gradient.cpu() for gradient in torch.autograd.grad((values * weights).sum(), trained)
    ]


def packed(model, items):
    row = build_row(items, range(len(items))).to(CUDA)
    return with_gradients(model, response_logprobs(model, row))


@pytest.mark.parametrize("name", [*MODELS, *CAPPED])
def test_packed_rows_equal_separate_forwards_and_so_does_every_gradient(name):
    slow = build(name)
    fast = on_gpu(slow)
    for seed in range(3):  # three lengths: what is compiled for one must fit others
        items = groups(seed)
        values, gradients = packed(fast, items)
        expected, by_hand = with_gradients(slow, torch.stack([separate(slow, g) for g in items]))
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
        assert len(gradients) == 2 * (4 if name == "gpt_oss" else 7) * 2
        for one, other in zip(gradients, by_hand, strict=True):
            assert other.abs().max() > 0
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5 * other.abs().max().item())


@pytest.mark.parametrize("name", MODELS)
def test_in_bf16_they_stay_within_its_rounding(name):
    slow, items = build(name), groups(0)
    values, gradients = packed(on_gpu(slow, torch.bfloat16), items)
    expected, by_hand = with_gradients(slow, torch.stack([separate(slow, g) for g in items]))
    torch.testing.assert_close(values, expected, rtol=0.01, atol=0.05)
    for one, other in zip(gradients, by_hand, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


def test_the_same_row_gives_the_same_bits(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make_deterministic()
    model, items = on_gpu(build("llama"), torch.bfloat16), groups(1)
    (one, gradients), (other, again) = packed(model, items), packed(model, items)
    torch.use_deterministic_algorithms(False)
    assert torch.equal(one, other)
    assert all(map(torch.equal, gradients, again))


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (0.5, 1.5)])
def test_the_kernel_equals_log_softmax(train_head, scale, softcap, monkeypatch):
    monkeypatch.setattr(logprobs, "GPU_TILE", (64, 256))  # of up to 150 tokens and 1,000 entries
    monkeypatch.setattr("iris_core.modeling.kernels.logprobs_triton.COLUMNS", 64)  # of a tile's 256 at once
    for tokens in (150, 131, 90):
        torch.manual_seed(tokens)
        hidden = torch.randn(tokens, 32, device=CUDA, requires_grad=True)
        weight = torch.randn(1000, 32, device=CUDA, requires_grad=train_head)
        targets = torch.randint(0, 1000, (tokens,), device=CUDA)
        leaves = (hidden, weight) if train_head else (hidden,)
        logits = scale * hidden.double() @ weight.double().T
        if softcap is not None:
            logits = softcap * (logits / softcap).tanh()
        slow = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        fast = token_logprobs(hidden, weight, targets, scale, softcap)
        torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
        grad_output = torch.randn(tokens, device=CUDA)
        for one, other in zip(
            torch.autograd.grad(fast @ grad_output, leaves),
            torch.autograd.grad(slow @ grad_output.double(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
