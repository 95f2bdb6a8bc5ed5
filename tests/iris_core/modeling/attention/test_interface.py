"""Attention by segments against the fused kernel on a whole masked row."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from iris_core.modeling.attention.interface import grouped_attention, kind_for, no_mask
from iris_core.modeling.attention.layout import Layout, flex_mask

pytestmark = pytest.mark.unit

SEGMENTS = [[5, 3, 4], [1, 1, 0], [2, 6, 1]]
CPU = torch.device("cpu")


class Layer(torch.nn.Module):
    def __init__(self, query, key):
        super().__init__()
        self.num_key_value_groups = query.shape[1] // key.shape[1]


def inputs(dtype, key_heads=2):
    torch.manual_seed(0)
    tokens = sum(map(sum, SEGMENTS))
    shapes = ((1, 6, tokens, 8), (1, key_heads, tokens, 8), (1, key_heads, tokens, 8))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def whole(query, key, value):
    tokens = query.shape[2]
    mask = create_mask(flex_mask(SEGMENTS, CPU).mask_mod, None, None, tokens, tokens, "cpu")
    return sdpa_attention_forward(Layer(query, key), query, key, value, mask, scaling=0.3)[0]


def by_segments(query, key, value):
    layout, layer = Layout(SEGMENTS, CPU), Layer(query, key)
    return grouped_attention(layer, query, key, value, no_mask(), layout=layout, scaling=0.3)[0]


def output_and_gradients(attend, tensors):
    output = attend(*tensors)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), tensors)]


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_segments_equal_the_whole_row(dtype, close, key_heads):
    tensors = inputs(dtype, key_heads)
    before = [tensor.detach().clone() for tensor in tensors]
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    found, expected = output_and_gradients(by_segments, tensors), output_and_gradients(whole, exact)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one.float(), other, rtol=close, atol=close)
    assert all(map(torch.equal, tensors, before))


def eagerly(query, key, value, window, softcap, sinks):
    """The whole row at once, as transformers' eager attention of Gemma 2 and gpt-oss computes it."""
    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    mask = create_mask(flex_mask(SEGMENTS, CPU, window).mask_mod, None, None, tokens, tokens, "cpu")
    scores = 0.3 * query @ key.repeat_interleave(groups, 1).mT
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(-1, -1, tokens, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., :tokens]
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 0.4])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_windows_soft_caps_sinks_and_wider_keys(key_heads, with_sinks, window, softcap):
    query, key, _ = inputs(torch.float32, key_heads)
    value = torch.randn(1, key_heads, query.shape[2], 5, requires_grad=True)  # not as wide as keys
    sinks = torch.linspace(-1, 1, 6).requires_grad_() if with_sinks else None
    tensors = [tensor for tensor in (query, key, value, sinks) if tensor is not None]

    def segments(*tensors):
        options = {"scaling": 0.3, "sliding_window": window, "softcap": softcap, "s_aux": sinks}
        layout = Layout(SEGMENTS, CPU)
        return grouped_attention(Layer(query, key), *tensors[:3], no_mask(), layout=layout, **options)[0]

    found = output_and_gradients(segments, tensors)
    expected = output_and_gradients(lambda *_: eagerly(query, key, value, window, softcap, sinks), tensors)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("softcap", "with_sinks"), [(0.4, False), (None, True)])
def test_without_a_layout_the_classes_own_attention_caps_scores(softcap, with_sinks, masked):
    """SDPA knows neither soft caps nor sinks; a mask is one of SDPA's: Boolean, or none, which means causal."""
    from transformers.models.gemma2 import modeling_gemma2
    from transformers.models.gpt_oss import modeling_gpt_oss

    torch.manual_seed(0)
    query, key, value = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    sinks = torch.linspace(-1, 1, 6) if with_sinks else None
    module = modeling_gpt_oss if with_sinks else modeling_gemma2
    layer = type("Attention", (Layer,), {"__module__": module.__name__})(query, key)
    layer.sinks = sinks
    layer.eval()
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril() if masked else None
    options = {"scaling": 0.3, "softcap": softcap, "s_aux": sinks}
    found = grouped_attention(layer, query, key, value, mask, **options)[0]
    last = grouped_attention(layer, query[:, :, -1:], key, value, None, **options)[0]
    scores = 0.3 * query @ key.repeat_interleave(3, 1).mT
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
    if with_sinks:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(-1, -1, 5, 1)], dim=-1)
    expected = scores.softmax(-1)[..., :5] @ value.repeat_interleave(3, 1)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last[:, 0], found[:, -1], rtol=1e-5, atol=1e-5)


def test_autocast_attends_in_the_dtype_of_the_values():
    """Rotated queries and keys come in fp32 there, values in bf16."""
    query, key, value = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = by_segments(query, key, value.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), whole(query, key, value), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_those_that_looking_at_every_token_finds(seed):
    draw = random.Random(seed)
    segments = [[draw.randint(1, 300), *(draw.choice([0, 1, 90, 280]) for _ in range(3))] for _ in range(6)]
    found = flex_mask(segments, CPU)
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
    wider = SimpleNamespace(shape=(1, 2, 7, size + 8))
    assert kind_for(value, value, options) == kind
    assert kind_for(wider, value, options) == "flex"
    assert kind_for(value, torch.empty(1, 2, 7, size, dtype=dtype), options) == "segments"


def test_nothing_is_kept_that_grows_with_the_square_of_the_tokens():
    tensors, kept = inputs(torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        by_segments(*tensors)
    assert sorted(kept) == sorted(tensor.numel() for tensor in tensors)
