"""Packed prefix-shared rows give the log-probs and gradients of separate plain forwards."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from iris_core.data.packing import Group, build_row, build_rows, pack
from iris_core.modeling.attention.interface import GROUPED
from iris_core.modeling.attention.layout import flex_mask
from iris_core.modeling.patches.lora import fuse_lora
from iris_core.modeling.scoring import response_logprobs, score
from tests.iris_core.separate import separate

pytestmark = pytest.mark.unit

GROUPS = [
    Group([1, 5, 9, 11], ([7, 8, 2], [20, 21, 22, 23, 2])),
    Group([3], ([2], [])),  # a prompt of one token, a response of one token, an empty response
    Group([4, 4, 6], ([9] * 9, [10, 2])),
    Group(list(range(30, 60)), ([5, 6], [7] * 4)),  # longer than all the others together
]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
MODELS = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "multi-head": (LlamaConfig, {"num_key_value_heads": 4}),  # keys and values of every head's own
    "multi-query": (LlamaConfig, {"num_key_value_heads": 1}),  # of all heads together
    "mistral": (MistralConfig, {"tie_word_embeddings": False, "sliding_window": 128}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),  # biases in its attention
    "window": (MistralConfig, {"tie_word_embeddings": False, "sliding_window": 5}),
    "gemma2": (
        Gemma2Config,
        {
            "head_dim": 8,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 2.0,
            "sliding_window": 4,
        },
    ),
    "granite": (GraniteConfig, {"logits_scaling": 3.0}),
    "cohere": (CohereConfig, {"logit_scale": 0.25}),
}


def build(name, dtype=torch.float32):
    config, settings = MODELS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        config(**{**SIZES, **settings}), dtype=dtype, attn_implementation=GROUPED
    ).eval()


@pytest.fixture(params=MODELS)
def model(request):
    return build(request.param)


def lora(model, targets="all-linear"):
    """The model with an adapter that is not zero."""
    settings = LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted


def both_ways(model, groups=GROUPS):
    """Log-probs and gradients of everything trainable: packed, then by separate forwards."""
    coefficients = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.7, 0.4, -0.9, 0.6, 1.2, -0.8, 0.5, 1.1, -0.2, 0.9, -1.3])
    found = []
    for forward in (
        lambda: response_logprobs(model, build_row(groups, range(len(groups)))),
        lambda: torch.stack([separate(model, group) for group in groups]),
    ):
        model.zero_grad()
        values = forward()
        (values.flatten() * coefficients[: values.numel()]).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((values.detach(), gradients))
    return found


def assert_same(packed, apart):
    torch.testing.assert_close(packed[0], apart[0], rtol=1e-5, atol=1e-5)
    assert len(packed[1]) == len(apart[1]) > 0
    for one, other in zip(packed[1], apart[1], strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5 * other.abs().max().item())


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_separate_forwards_and_so_do_all_gradients(name):
    assert_same(*both_ways(build(name)))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "window", "gemma2"])
def test_flex_attention_sees_the_same(name, monkeypatch):
    """What a GPU computes in fp32, by FlexAttention's eager form, with its check against gradients on a CPU removed."""
    monkeypatch.setattr("iris_core.modeling.attention.interface.kind_for", lambda *asked: "flex")
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    with torch.compiler.set_stance("force_eager"):
        assert_same(*both_ways(build(name)))


def slow_varlen(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, scale, window_size, enable_gqa
):
    """`varlen_attn` sequence by sequence; the last query of each sees all of its keys."""
    assert window_size[1] == 0
    assert enable_gqa
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    outputs = []
    for q, k, v in zip(
        query.split(cu_seqlens_q.diff().tolist()),
        key.split(cu_seqlens_k.diff().tolist()),
        value.split(cu_seqlens_k.diff().tolist()),
        strict=True,
    ):
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        if window_size[0] >= 0:
            mask = mask.triu(len(k) - len(q) - window_size[0])
        tensors = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        found = scaled_dot_product_attention(*tensors, attn_mask=mask, scale=scale, enable_gqa=True)
        outputs.append(found[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("name", ["llama", "multi-query", "mistral", "qwen2", "window"])
def test_flash_attention_is_given_sequences_that_see_the_same(name, monkeypatch):
    monkeypatch.setattr("iris_core.modeling.attention.interface.kind_for", lambda *asked: "flash")
    monkeypatch.setattr("iris_core.modeling.attention.flash.varlen.varlen_attn", slow_varlen)
    assert_same(*both_ways(build(name)))


@pytest.mark.parametrize("count", [1, 3])
def test_one_response_and_three_are_sequences_with_the_prompt_before_them(count, monkeypatch):
    model = build("llama")
    groups = [Group(g.prompt, (*g.responses, g.responses[0][::-1])[:count]) for g in GROUPS]
    found = []
    for kind in ("segments", "flash"):
        monkeypatch.setattr("iris_core.modeling.attention.interface.kind_for", lambda *asked, kind=kind: kind)
        monkeypatch.setattr("iris_core.modeling.attention.flash.varlen.varlen_attn", slow_varlen)
        model.zero_grad()
        values = response_logprobs(model, build_row(groups, [0, 1, 2, 3]))
        (values * torch.linspace(-1, 1, 4 * count).view(4, count)).sum().backward()
        found.append((values.detach(), [p.grad.clone() for p in model.parameters()]))
    assert_same(*found)


@pytest.mark.parametrize("kind", ["segments", "flex", "flash"])
def test_samples_of_a_prompt_with_and_without_an_annotated_response(kind, monkeypatch):
    groups = [
        Group([1, 5, 9, 11], ([], [7, 8, 2], [20, 21, 22, 2], [9, 9])),
        Group([3], ([2, 4], [], [5, 6, 7], [])),
        Group([4, 4], ([], [], [], [6])),
        Group([8, 3], ([9, 9, 2], [7, 8, 2], [7, 5, 6], [4, 1, 1]), scored_from=(0, 0, 1, 2)),
    ]
    monkeypatch.setattr("iris_core.modeling.attention.interface.kind_for", lambda *asked: kind)
    monkeypatch.setattr("iris_core.modeling.attention.flash.varlen.varlen_attn", slow_varlen)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    with torch.compiler.set_stance("force_eager"):
        assert_same(*both_ways(build("llama"), groups))


def test_tokens_that_are_only_read_have_no_log_prob():
    """Of the second response the last token counts alone, given those before it; of the third nothing does."""
    model, whole = build("llama"), Group([8, 3], ([9, 9, 2], [7, 5, 6], [4, 1]), cut=2)
    part = replace(whole, scored_from=(0, 2, 2))
    assert part.sums == [2, 1, 1, 0]
    assert part.first(2) == Group([8, 3], ([9, 9, 2], [7, 5, 6]), cut=2, scored_from=(0, 2))
    for packing in ("packed", "separate"):
        row = build_row([part], [0], packing)
        assert row.targets.tolist() == [9, 9, 2, 6]
        found = response_logprobs(model, row)[0]
        of_all = response_logprobs(model, build_row([whole], [0], packing))[0]
        shorter = response_logprobs(model, build_row([Group([8, 3], ([7, 5],))], [0], packing))[0]
        torch.testing.assert_close(found, torch.stack([*of_all[:2], of_all[2] - shorter[0], torch.zeros(())]))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_every_gradient_of_an_adapter_equals_that_of_separate_forwards(name):
    """The reference is PEFT's own forward."""
    model = lora(build(name))
    _, apart = both_ways(model)
    fuse_lora(model)
    packed, _ = both_ways(model)
    assert len(packed[1]) == 2 * 7 * 2  # two factors of seven layers in two blocks
    assert_same(packed, apart)


def test_an_adapter_on_the_lm_head_counts():
    model = lora(build("mistral"), ["q_proj", "lm_head"])
    packed, apart = both_ways(model)
    assert len(packed[1]) == 2 * (2 + 1)
    assert_same(packed, apart)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_in_bf16_packed_stays_as_close_as_separate_forwards_do(name):
    """Both round; against fp32, packed rows are within 3 % of the log-probs, as separate forwards are."""
    exact = build(name)
    rounded = build(name, torch.bfloat16)
    rounded.load_state_dict(exact.state_dict())
    with torch.no_grad():
        expected = torch.stack([separate(exact, group) for group in GROUPS])
        packed = response_logprobs(rounded, build_row(GROUPS, [0, 1, 2, 3]))
        apart = torch.stack([separate(rounded, group).float() for group in GROUPS])
    assert (apart - expected).abs().max() < 0.03 * expected.abs().max()
    assert (packed - expected).abs().max() < 0.03 * expected.abs().max()


def test_truncated_prompts_and_responses_are_scored_as_they_are():
    model = build("llama")
    cut = [Group(group.prompt[-2:], tuple(ids[:2] for ids in group.responses)) for group in GROUPS]
    packed = response_logprobs(model, build_row(cut, [0, 1, 2, 3]))
    torch.testing.assert_close(packed, torch.stack([separate(model, group) for group in cut]))


def test_one_response_and_three_take_the_same_path():
    model = build("llama")
    for count in (1, 3):
        groups = [Group(g.prompt, (g.responses * 2)[:count]) for g in GROUPS]
        packed = response_logprobs(model, build_row(groups, [0, 1, 2, 3]))
        assert packed.shape == (4, count)
        torch.testing.assert_close(packed, torch.stack([separate(model, g) for g in groups]))


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_a_response_that_is_cut_has_two_sums(cut):
    """They are the log-probs of its first tokens and of the rest; other responses have one sum."""
    model = build("llama")
    groups = [Group(group.prompt, group.responses, cut) for group in GROUPS]
    packed = response_logprobs(model, build_row(groups, [0, 1, 2, 3]))
    whole = torch.stack([separate(model, group) for group in GROUPS])
    heads = [Group(group.prompt, (group.responses[0][:cut],)) for group in GROUPS]
    first = torch.stack([separate(model, group) for group in heads])[:, 0]
    expected = torch.stack([first, whole[:, 0] - first, whole[:, 1]], dim=1)
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)
    assert groups[0].sums == [min(cut, 3), max(3 - cut, 0), 5]
    torch.testing.assert_close(packed, score(model, groups, tokens_per_row=1))


def test_an_lm_head_with_a_bias_counts():
    model = build("qwen2")
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 96))
    packed, apart = both_ways(model)
    assert len(packed[1]) == len(list(model.parameters()))
    assert_same(packed, apart)


@pytest.mark.parametrize("name", MODELS)
def test_separate_rows_are_the_same_pairs(name):
    """Rows of separate sequences hold fewer pairs: each prompt counts once for each response with tokens."""
    model = build(name)
    found = score(model, GROUPS, 24, packing="separate")
    torch.testing.assert_close(found, score(model, GROUPS, 24), rtol=1e-5, atol=1e-5)
    rows = {packing: build_rows(GROUPS, [0, 1, 2], 26, packing) for packing in ("packed", "separate")}
    assert [row.pairs.tolist() for row in rows["packed"]] == [[0, 2], [1]]
    assert [row.pairs.tolist() for row in rows["separate"]] == [[1, 2], [0]]
    assert [group.computed_tokens("separate") for group in GROUPS] == [16, 2, 17, 66]


def test_score_does_not_depend_on_the_packing(model):
    whole = score(model, GROUPS, tokens_per_row=1000)
    alone = score(model, GROUPS, tokens_per_row=1)
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


def test_pack_fills_rows_within_the_budget():
    """Lengths 5, 3, 7, 2 and 12 into rows of 8: 12 alone, 7 alone, 5 + 3, then 2."""
    assert pack([5, 3, 7, 2, 12], 8) == [[4], [2], [0, 1], [3]]
    assert pack([], 8) == []


def test_ranks_get_equally_many_rows_of_about_the_same_tokens():
    """Two rows of 8 hold 16 tokens at most; three ranks take three rows, the longest first."""
    assert pack([5, 3, 7, 1], 8) == [[2, 3], [0, 1]]
    assert pack([5, 3, 7, 1], 8, ranks=3) == [[2], [0], [1, 3]]
    assert pack([4, 4, 4, 4, 4], 8, ranks=2) == [[0, 4], [1], [2], [3]]
    assert pack([3, 9], 8, ranks=3) == [[1], [0]]  # longer than the budget, and fewer groups than ranks


@given(st.lists(st.integers(1, 20), min_size=1), st.integers(8, 40), st.integers(2, 5))
def test_rows_of_ranks_hold_all_groups_within_the_budget(lengths, budget, ranks):
    rows = pack(lengths, budget, ranks)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[index] for index in row) <= budget for row in rows)
    assert len(rows) % ranks == 0 or all(len(row) == 1 for row in rows)


def test_mask_of_two_groups():
    """Group 0: prompt of 2, responses of 1 and 2. Group 1: prompt of 1, responses of 0 and 1. No block is full."""
    mask = flex_mask([[2, 1, 2], [1, 0, 1]], torch.device("cpu"))
    seen = create_mask(mask.mask_mod, None, None, *mask.seq_lengths, "cpu")[0, 0]
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_blocks_that_no_query_sees_are_skipped():
    """Two groups of 256 tokens: of 4 x 4 blocks of 128, each group keeps its own three that are not later."""
    mask = flex_mask([[128, 64, 64], [128, 128, 0]], torch.device("cpu"))
    assert mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum() == 6
