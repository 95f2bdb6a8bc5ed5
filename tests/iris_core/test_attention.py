"""Attention by parts against the fused kernel on a whole masked row."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from iris_core.attention import grouped_attention, kind_for, no_mask
from iris_core.layout import Layout, flex_mask

pytestmark = pytest.mark.unit

PARTS = [[5, 3, 4], [1, 1, 0], [2, 6, 1]]
CPU = torch.device("cpu")


class Layer(torch.nn.Module):
    def __init__(self, query, key):
        super().__init__()
        self.num_key_value_groups = query.shape[1] // key.shape[1]


def inputs(dtype, key_heads=2):
    torch.manual_seed(0)
    tokens = sum(map(sum, PARTS))
    shapes = ((1, 6, tokens, 8), (1, key_heads, tokens, 8), (1, key_heads, tokens, 8))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def whole(query, key, value):
    tokens = query.shape[2]
    mask = create_mask(flex_mask(PARTS, CPU).mask_mod, None, None, tokens, tokens, "cpu")
    return sdpa_attention_forward(Layer(query, key), query, key, value, mask, scaling=0.3)[0]


def by_parts(query, key, value):
    layout, layer = Layout(PARTS, CPU), Layer(query, key)
    return grouped_attention(layer, query, key, value, no_mask(), layout=layout, scaling=0.3)[0]


def output_and_gradients(attend, sides):
    output = attend(*sides)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), sides)]


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_parts_equal_the_whole_row(dtype, close, key_heads):
    sides = inputs(dtype, key_heads)
    before = [side.detach().clone() for side in sides]
    exact = [side.detach().float().requires_grad_() for side in sides]
    found, expected = output_and_gradients(by_parts, sides), output_and_gradients(whole, exact)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one.float(), other, rtol=close, atol=close)
    assert all(map(torch.equal, sides, before))


def test_autocast_attends_in_the_format_of_the_values():
    """Rotated queries and keys come in fp32 there, values in bf16."""
    query, key, value = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = by_parts(query, key, value.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), whole(query, key, value), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_those_that_looking_at_every_token_finds(seed):
    draw = random.Random(seed)
    parts = [[draw.randint(1, 300), *(draw.choice([0, 1, 90, 280]) for _ in range(3))] for _ in range(6)]  # fmt: skip
    found = flex_mask(parts, CPU)
    expected = create_block_mask(found.mask_mod, None, None, *found.seq_lengths, "cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.to_dense(), expected.to_dense())


@pytest.mark.parametrize(
    ("dtype", "size", "options", "kind"),
    [
        (torch.bfloat16, 128, {"scaling": 0.1, "softcap": None}, "flash"),
        (torch.bfloat16, 128, {"softcap": 50.0}, "flex"),
        (torch.float32, 128, {}, "flex"),
        (torch.bfloat16, 512, {}, "flex"),
        (torch.bfloat16, 100, {}, "flex"),
    ],
)
def test_what_flash_attention_cannot_do_is_flex_attentions(dtype, size, options, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    value = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 2, 7, size), device="cuda")
    assert kind_for(value, options) == kind
    assert kind_for(torch.empty(1, 2, 7, size, dtype=dtype), options) == "parts"


def test_nothing_is_kept_that_grows_with_the_square_of_the_tokens():
    sides, kept = inputs(torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        by_parts(*sides)
    assert sorted(kept) == sorted(side.numel() for side in sides)
