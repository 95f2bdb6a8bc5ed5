"""What a GPU gets compiled computes the same when it is traced; that needs no GPU. Kernels themselves: test_on_gpu.py."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from iris_core.modeling import fused, lora
from iris_core.modeling.kernels.compiled import one_kernel

pytestmark = pytest.mark.unit


def sides(tokens, *shapes):
    torch.manual_seed(tokens)
    return [torch.randn(tokens, *shape) for shape in shapes]


def turned(tokens):
    query, key, cos, sin = sides(tokens, (4, 8), (2, 8), (1, 8), (1, 8))
    return [side.transpose(0, 1)[None] for side in (query, key, cos, sin)]


CASES = {
    "norm": (fused._normed, lambda n: [*sides(n, (16,)), torch.ones(16), 1e-5]),
    "norm's gradients": (
        fused._norm_gradients,
        lambda n: [*sides(n, (16,), (16,)), torch.ones(16), *sides(n, (1,)), True],
    ),
    "rotary": (fused._turned, turned),
    "gated": (lora._gated, lambda n: sides(n, (24,), (24,))),
    "active and inner": (lora._active_and_inner, lambda n: sides(n, (24,), (24,))),
    "gate's gradients": (lora._gate_gradients, lambda n: sides(n, (24,), (24,), (24,), (24,))),
}


@pytest.mark.parametrize("name", CASES)
def test_traced_for_one_length_it_fits_others(name):
    function, arguments = CASES[name]
    graphs = []

    def counting(module, inputs):
        graphs.append(module)
        return aot_eager(module, inputs)

    traced = torch.compile(function.__wrapped__, backend=counting, fullgraph=True)
    with torch.no_grad():
        for tokens in (5, 9, 14):  # the second is traced for any length
            found, expected = traced(*arguments(tokens)), function(*arguments(tokens))
            pairs = zip(*(s if isinstance(s, tuple) else (s,) for s in (found, expected)), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one, other)
    assert len(graphs) == 2


def test_a_cpu_runs_the_function_as_it_is(monkeypatch):
    def never(function):
        raise AssertionError("compiled on a CPU")

    monkeypatch.setattr(torch, "compile", never)
    assert one_kernel(lambda x, y: x + y)(torch.ones(2), 1).tolist() == [2, 2]
