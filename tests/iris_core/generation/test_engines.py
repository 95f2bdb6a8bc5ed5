"""Which engine is opened, and where a response ends."""

import pytest

from iris_core.common.errors import ConfigError
from iris_core.generation import engines
from iris_core.generation.engines import Sample

pytestmark = pytest.mark.unit


def test_a_response_ends_with_its_end_of_turn() -> None:
    assert engines._truncate([5, 6, 2, 0, 0], [9, 2]) == Sample([5, 6, 2], "stop")
    assert engines._truncate([5, 6], [9, 2]) == Sample([5, 6], "length")


def test_vllm_is_asked_for_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"generation.backend: vllm is not installed"):
        engines.resolve_backend("vllm")
    assert engines.resolve_backend("auto") == "transformers"
    assert engines.resolve_backend("transformers") == "transformers"
