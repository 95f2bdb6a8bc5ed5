"""Packed prefix-shared rows give the log-probs and gradients of separate plain forwards."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from iris_core.attention import GROUPED
from iris_core.packing import Group, attention_mask, build_row, pack
from iris_core.scoring import response_logprobs, score

pytestmark = pytest.mark.unit

GROUPS = [
    Group([1, 5, 9, 11], ([7, 8, 2], [20, 21, 22, 23, 2])),
    Group([3], ([2], [])),
    Group([4, 4, 6], ([9] * 9, [10, 2])),
]


def separate(model, group):
    """The slow twin: each response in a forward of its own, full logits."""
    sums = []
    for response in group.responses:
        ids = torch.tensor([[*group.prompt, *response]])
        logprobs = model(ids).logits[0].log_softmax(-1)
        start = len(group.prompt) - 1
        sums.append(
            sum((logprobs[start + i, token] for i, token in enumerate(response)), torch.zeros(()))
        )
    return torch.stack(sums)


@pytest.fixture(scope="module", params=[GROUPED, "sdpa"])
def model(tiny_model, request):
    return AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, attn_implementation=request.param
    ).eval()


def test_packed_equals_separate_forwards(model):
    packed = response_logprobs(model, build_row(GROUPS, [0, 1, 2]))
    slow = torch.stack([separate(model, group) for group in GROUPS])
    torch.testing.assert_close(packed, slow, rtol=1e-5, atol=1e-5)


def test_packed_gradients_equal_those_of_separate_forwards(model):
    coefficients = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.0, 0.7]])
    gradients = []
    for values in (
        response_logprobs(model, build_row(GROUPS, [0, 1, 2])),
        torch.stack([separate(model, group) for group in GROUPS]),
    ):
        model.zero_grad()
        (values * coefficients).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_score_does_not_depend_on_the_packing(model):
    whole = score(model, GROUPS, tokens_per_row=1000)
    alone = score(model, GROUPS, tokens_per_row=1)
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


def test_pack_fills_rows_within_the_budget():
    """Lengths 5, 3, 7, 2 and 12 into rows of 8: 12 alone, 7 alone, 5 + 3, then 2."""
    assert pack([5, 3, 7, 2, 12], 8) == [[4], [2], [0, 1], [3]]
    assert pack([], 8) == []


def test_mask_of_two_groups():
    """Group 0: prompt, annotated, synthetic; group 1: prompt, annotated."""
    mask = attention_mask(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
