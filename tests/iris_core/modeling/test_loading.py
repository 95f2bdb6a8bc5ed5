"""The dtype that `dtype: auto` resolves to on a CPU."""

import pytest
import torch

from iris_core.modeling import loading

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a rule of its own"),
]


@pytest.mark.parametrize(
    ("units", "speedup", "dtype"),
    [(True, 2.4, "bfloat16"), (True, 0.5, "float32"), (False, 2.4, "float32")],
)
def test_bfloat16_needs_instructions_that_are_fast(monkeypatch, units, speedup, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(loading, "_matmul_speedup", lambda asked: speedup)
    assert loading.resolve_dtype("auto") == dtype


def test_a_named_dtype_is_used():
    assert loading.resolve_dtype("bfloat16") == "bfloat16"


def test_the_speedup_is_that_of_the_best_repetitions(monkeypatch):
    seconds = iter([[3.0, 2.0], [0.5, 9.0]])
    monkeypatch.setattr(loading.timeit, "repeat", lambda work, **_: work() is not None and next(seconds))
    assert loading._matmul_speedup(torch.bfloat16) == 4.0
