"""Attention by groups and by parts against the fused kernel on a whole masked row."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from iris_core.attention import _ByParts, grouped_attention
from iris_core.packing import Group, build_row

pytestmark = pytest.mark.unit

GROUPS = [
    Group([0] * 5, ([0] * 3, [0] * 4)),
    Group([0], ([0], [])),
    Group([0] * 2, ([0] * 6, [0])),
]
PARTS = [[5, 3, 4], [1, 1, 0], [2, 6, 1]]


class Layer(torch.nn.Module):
    num_key_value_groups = 3


def inputs(dtype):
    torch.manual_seed(0)
    tokens = sum(map(sum, PARTS))
    shapes = ((1, 6, tokens, 8), (1, 2, tokens, 8), (1, 2, tokens, 8))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def whole(query, key, value):
    mask = build_row(GROUPS, [0, 1, 2])["mask"]
    return sdpa_attention_forward(Layer(), query, key, value, mask, scaling=0.3)[0]


def by_parts(query, key, value):
    return _ByParts.apply(query[0], key[0], value[0], PARTS, 0.3)[None]


def output_and_gradients(attend, sides):
    output = attend(*sides)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), sides)]


def test_parts_equal_the_whole_row_in_fp32():
    sides = inputs(torch.float32)
    found, expected = (output_and_gradients(attend, sides) for attend in (by_parts, whole))
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_groups_equal_the_whole_row(dtype, close):
    sides = inputs(dtype)
    mask = build_row(GROUPS, [0, 1, 2])["mask"]

    def grouped(*sides):
        return grouped_attention(Layer(), *sides, mask, parts=PARTS, scaling=0.3)[0]

    exact = [side.detach().float().requires_grad_() for side in sides]
    found, expected = output_and_gradients(grouped, sides), output_and_gradients(whole, exact)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other, rtol=close, atol=close)
