"""What a GPU runs compiled computes the same when it is traced, which needs no GPU; test_on_gpu.py runs the kernels."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from iris_core.modeling.kernels import lora, norm_rotary
from iris_core.modeling.kernels.compiled import compile_on_gpu

pytestmark = pytest.mark.unit


def random(tokens, *shapes):
    torch.manual_seed(tokens)
    return [torch.randn(tokens, *shape) for shape in shapes]


def rotary(tokens):
    query, key, cos, sin = random(tokens, (4, 8), (2, 8), (1, 8), (1, 8))
    return [tensor.transpose(0, 1)[None] for tensor in (query, key, cos, sin)]


CASES = {
    "norm": (norm_rotary._normalize, lambda n: [*random(n, (16,)), torch.ones(16), 1e-5]),
    "norm's gradients": (
        norm_rotary._norm_gradients,
        lambda n: [*random(n, (16,), (16,)), torch.ones(16), *random(n, (1,)), True],
    ),
    "rotary": (norm_rotary._rotate, rotary),
    "gated": (lora._gated, lambda n: random(n, (24,), (24,))),
    "active and inner": (lora._active_and_inner, lambda n: random(n, (24,), (24,))),
    "gate's gradients": (lora._gate_gradients, lambda n: random(n, (24,), (24,), (24,), (24,))),
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


def test_a_cpu_runs_the_function_uncompiled(monkeypatch):
    def never(function):
        raise AssertionError("compiled on a CPU")

    monkeypatch.setattr(torch, "compile", never)
    assert compile_on_gpu(lambda x, y: x + y)(torch.ones(2), 1).tolist() == [2, 2]
