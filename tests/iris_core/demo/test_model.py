"""The demo model: converted for real, loadable as an ordinary chat model, and never rewritten."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from iris_core.common.errors import ModelError
from iris_core.demo import model as demo_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "smol"
    run = subprocess.run(
        [sys.executable, "-m", "iris_core.demo.model", "--out", str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith(str(out))
    return out


@pytest.mark.integration
def test_weights_are_bf16_safetensors_without_quantisation_marks(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    config = json.loads((folder / "config.json").read_text())
    assert dtypes == {"BF16"}
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"


@pytest.mark.integration
def test_answers_a_chat_prompt(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


@pytest.mark.integration
def test_second_call_rewrites_nothing(folder: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert demo_model.ensure(folder) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert [child.name for child in folder.parent.iterdir()] == [folder.name]


@pytest.mark.unit
def test_refuses_a_folder_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="not the demo model"):
        demo_model.ensure(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.unit
def test_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "PACKAGE", "no-such-package-of-iris")
    with pytest.raises(ModelError, match="requirements/demo-model.txt"):
        demo_model.find_gguf()


@pytest.mark.unit
def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_halfway(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(demo_model, "convert", break_halfway)
    monkeypatch.setattr(demo_model, "find_gguf", lambda: tmp_path / "x.gguf")
    with pytest.raises(OSError, match="disk full"):
        demo_model.ensure(tmp_path / "smol")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.unit
def test_default_path_follows_the_cache_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path))
    assert demo_model.default_path() == tmp_path / "models" / demo_model.NAME
