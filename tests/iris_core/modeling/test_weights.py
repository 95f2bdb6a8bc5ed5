"""Model folders that cannot give the model that was trained: each is refused in one line that names file or tensor."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from iris_core.common.errors import ModelError
from iris_core.modeling import loading
from iris_core.modeling.weights import check_model, check_vocabulary
from iris_core.store import Artifact, Policy
from tests.conftest import build_model

pytestmark = pytest.mark.unit

Weights = dict[str, Tensor]
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SMALL = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model (its embedding is its output layer, too)."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untied")
    build_model(path, tie_word_embeddings=False)
    return path


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder: Path, **settings: Any) -> None:
    found = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**found, **settings}))


def shard(folder: Path) -> None:
    """Saves the weights again in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="100KB")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        check_model(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def renamed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: t for name, t in weights.items() if part not in name}


def with_tensor(name: str, tensor: Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: tensor}


def test_a_whole_model_is_let_in_without_memory(tiny_model: Path, untied_model: Path) -> None:
    for path in (tiny_model, untied_model):
        model = check_model(path)
        assert type(model) is LlamaForCausalLM
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_shards_half_precision_and_names_without_the_base_prefix_are_let_in(folder: Path) -> None:
    rewrite(folder, lambda weights: {name: tensor.half() for name, tensor in weights.items()})
    check_model(folder)
    rewrite(folder, lambda weights: {n.removeprefix("model."): t for n, t in weights.items()})
    check_model(folder)
    shard(folder)
    check_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("_orig_mod."), r"needs 21 tensors that the weights lack .* remove '_orig_mod.' from all names"),
        (renamed("module."), r"remove 'module.' from all names"),
        (renamed("base_model.model."), r"remove 'base_model.model.' from all names"),
        (
            without("layers.1."),
            r"needs 9 tensors that the weights lack .* such as model.layers.1.input_layernorm.weight",
        ),
        (without("embed_tokens"), r"needs 2 tensors that the weights lack .* such as lm_head.weight"),
        (
            without("model.norm"),
            r"needs 1 tensor that the weights lack .* such as model.norm.weight: save the whole model",
        ),
        (with_tensor(UP, torch.ones(100, 64)), rf"{UP} has the shape \[100, 64\], config.json asks for \[128, 64\]"),
        (
            with_tensor("model.layers.0.self_attn.q_proj.bias", torch.ones(64)),
            r"hold 1 tensor that LlamaForCausalLM has no place for, such as model.layers.0.self_attn.q_proj.bias",
        ),
        (
            with_tensor("lm_head.weight", torch.ones(384, 64)),
            r"ties lm_head.weight to model.embed_tokens.weight, the weights hold both",
        ),
        (with_tensor(UP, torch.ones(128, 64).to(torch.float8_e4m3fn)), rf"{UP} is stored as F8_E4M3"),
        (with_tensor(UP, torch.ones(128, 64, dtype=torch.int8)), rf"{UP} is stored as I8"),
        (with_tensor(UP, torch.full((128, 64), torch.nan)), rf"{UP} holds NaN or infinite numbers"),
        (with_tensor(UP, torch.full((128, 64), -torch.inf).bfloat16()), rf"{UP} holds NaN or infinite numbers"),
        (with_tensor(UP, torch.full((128, 64), 1e200, dtype=torch.float64)), rf"{UP} holds NaN or infinite numbers"),
        (
            with_tensor(UP, torch.zeros(128, 64)),
            rf"{UP} holds nothing but zeros, as an incomplete download leaves them",
        ),
    ],
)
def test_tensors_that_are_not_the_model_s(folder: Path, change: Callable[[Weights], Weights], message: str) -> None:
    rewrite(folder, change)
    refused(folder, message)


def test_an_output_layer_of_its_own_has_to_be_there(untied_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(untied_model, tmp_path / "model"))
    rewrite(folder, without("lm_head"))
    refused(folder, r"needs 1 tensor that the weights lack .* such as lm_head.weight")


def test_a_tied_output_layer_may_be_there_if_it_is_the_embedding(folder: Path) -> None:
    rewrite(folder, lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    check_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("experts.2.w1"), r"tensors that make up model.layers.\d.mlp.experts.gate_up_proj are not all there"),
        (without("experts.3."), r"experts.\w+ has the shape \[3, .*config.json asks for \[4, "),
        (without("layers.1.block_sparse_moe.gate"), r"lack .* such as model.layers.1.mlp.gate.weight"),
    ],
)
def test_experts_are_compared_by_the_rules_they_are_joined_by(
    tmp_path: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=4)).save_pretrained(tmp_path)
    check_model(tmp_path)
    rewrite(tmp_path, change)
    refused(tmp_path, message)


def test_values_in_every_shard_are_looked_through(folder: Path) -> None:
    shard(folder)
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    weights = load_file(last)
    name = max(weights)
    weights[name].view(-1)[-1] = torch.nan
    save_file(weights, last, metadata={"format": "pt"})
    refused(folder, rf"{last.name}: {name} holds NaN")


def test_a_missing_shard_and_a_tensor_in_two(folder: Path) -> None:
    shard(folder)
    first, second, *_ = shards = sorted(folder.glob("model-*.safetensors"))
    tensor = load_file(first)
    save_file({**load_file(second), **tensor}, second, metadata={"format": "pt"})
    refused(folder, rf"{re.escape(min(tensor))} is in both {first.name} and {second.name}")
    first.unlink()
    refused(folder, rf"1 of {len(shards)} shards missing, such as {first.name}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            WEIGHTS,
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
            r"is a Git LFS pointer, not the file",
        ),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", r"tokenizer.json is a Git LFS pointer"),
        (WEIGHTS, b"", r"model.safetensors is empty"),
        (WEIGHTS, b"<html>Not found</html>", r"model.safetensors is truncated or not a safetensors file"),
        (CONFIG, b"{", r"config.json is not JSON \(Expecting property name"),
        (CONFIG, b"[]", r"config.json holds a list, a JSON object is needed"),
        ("generation_config.json", b"{'a': 1}", r"generation_config.json is not JSON"),
        (
            "generation_config.json",
            b'{"do_sample": false, "temperature": 0.5}',
            r"generation_config.json is not valid: .*temperature",
        ),
        ("tokenizer_config.json", b"\xff\xfe", r"tokenizer_config.json is not JSON"),
        (
            INDEX,
            b'{"weight_map": {"a": "other.safetensors"}}',
            r"holds both model.safetensors and model.safetensors.index.json",
        ),
        (INDEX, b"{}", r"model.safetensors.index.json has no weight_map"),
    ],
)
def test_files_that_are_not_what_they_should_be(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    refused(folder, message)


def test_a_truncated_file_and_a_dead_link(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])
    refused(folder, r"model.safetensors is truncated")
    (folder / WEIGHTS).unlink()
    os.symlink(folder / "blobs" / "gone", folder / WEIGHTS)
    refused(folder, r"model.safetensors is a link to a missing file")


def test_files_that_vllm_and_transformers_would_not_read_alike(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")
    refused(folder, r"holds consolidated.safetensors, model.safetensors: without .* vLLM all of them")
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")
    refused(
        folder,
        r"holds consolidated.safetensors, model.fp16.safetensors: .*model.safetensors alone is needed",
    )


def test_an_adapter_is_not_a_model_and_not_part_of_one(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(target_modules="all-linear")).save_pretrained(adapter)
    is_adapter = rf"is an adapter on {tiny_model}, not a model: merge it first"
    refused(adapter, is_adapter)
    shutil.copy(tiny_model / CONFIG, adapter)
    refused(adapter, is_adapter)
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, folder)
    refused(folder, r"holds adapter_config.json and adapter_model.safetensors beside a whole model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"is quantised \(config.json, quantization_config: gptq\)",
        ),
        ({"quantization": {"bits": 4}}, r"is quantised \(config.json, quantization: set\)"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"quantization_config: fp8"),
        ({"model_type": "nosuch"}, r"describes no model that transformers 5[\d.]+ knows: .*`nosuch`"),
        (
            {"model_type": "nosuch", "auto_map": {"AutoConfig": "c.C"}},
            r"needs its own Python code .* set model.trust_remote_code: true",
        ),
        ({"num_hidden_layers": "two"}, r"describes no model .*expected int, got str"),
        ({"num_hidden_layers": 1}, r"hold 9 tensors that LlamaForCausalLM has no place for"),
        ({"num_hidden_layers": 3}, r"needs 9 tensors that the weights lack"),
        ({"vocab_size": 400}, r"model.embed_tokens.weight has the shape \[384, 64\], config.json asks for \[400, 64\]"),
        ({"architectures": ["LlamaModel"]}, r"was saved as a LlamaModel"),
    ],
)
def test_a_configuration_of_another_model(folder: Path, settings: dict[str, Any], message: str) -> None:
    configure(folder, **settings)
    refused(folder, message)


def test_a_configuration_that_is_missing_or_names_no_type(folder: Path) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    del settings["model_type"]
    (folder / CONFIG).write_text(json.dumps(settings))
    refused(folder, r"config.json has no model_type")
    (folder / CONFIG).unlink()
    refused(folder, r"has no config.json")


def test_a_tokenizer_with_code_of_its_own(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    own = {"auto_map": {"AutoTokenizer": ["t.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    with pytest.raises(ModelError, match=r"auto_map.* then set model\.trust_remote_code: true$"):
        loading.load_tokenizer(folder)


def test_models_that_are_no_causal_language_models(tmp_path: Path) -> None:
    llama = LlamaConfig(**SMALL, num_labels=1, tie_word_embeddings=True, pad_token_id=0)
    bert = BertConfig(**SMALL)
    t5 = T5Config(vocab_size=384, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2)
    for model, message in [
        (BertForMaskedLM(bert), r"model_type: bert, is_encoder_decoder: False, is_decoder: False"),
        (BertLMHeadModel(bert), r"is no causal language model"),
        (T5ForConditionalGeneration(t5), r"model_type: t5, is_encoder_decoder: True"),
        (LlamaForSequenceClassification(llama), r"was saved as a LlamaForSequenceClassification"),
    ]:
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        refused(folder, message)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda t: t.add_tokens(["<|colour|>"]), r"gives '<\|colour\|>' the id 300, the model has rows for 300 tokens"),
        (lambda t: t.add_special_tokens({"pad_token": "[PAD]"}), r"gives '\[PAD\]' the id 300"),
        (lambda t: use_in_template(t, "<|tool|>"), r"gives '<\|tool\|>' the id 300"),
        (lambda t: t.add_special_tokens({"extra_special_tokens": ["<image>"]}), None),
    ],
)
def test_tokens_that_the_embedding_has_no_row_for(
    tmp_path: Path, add: Callable[[Any], Any], message: str | None
) -> None:
    build_model(tmp_path, vocab_size=len_of_tokenizer(tmp_path))
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), check_model(tmp_path)
    check_vocabulary(tmp_path, tokenizer, model)
    add(tokenizer)
    if message is None:
        check_vocabulary(tmp_path, tokenizer, model)
        return
    message = message.replace("300", str(model.config.vocab_size))
    with pytest.raises(ModelError, match=message):
        check_vocabulary(tmp_path, tokenizer, model)


def len_of_tokenizer(folder: Path) -> int:
    build_model(folder)
    return len(AutoTokenizer.from_pretrained(folder))


def use_in_template(tokenizer: Any, token: str) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": [token]})
    tokenizer.chat_template += f"{{% if tools %}}{token}{{% endif %}}"


def test_no_stage_loads_random_weights(folder: Path) -> None:
    rewrite(folder, without("layers.1.mlp"))
    with pytest.raises(ModelError, match=r"needs 3 tensors that the weights lack"):
        loading.load_policy(Policy(model=Artifact.of(folder)), "float32")
    rewrite(folder, with_tensor("model.norm.weight", torch.ones(7)))
    with pytest.raises(ModelError, match=r"model.norm.weight has the shape \[7\]"):
        loading.load_policy(Policy(model=Artifact.of(folder)), "float32")


def test_no_stage_loads_part_of_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    policy = Policy(model=Artifact.of(tiny_model), adapter=Artifact.of(tmp_path))
    loading.load_policy(policy, "float32")
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    one = min(weights)
    save_file({name: t for name, t in weights.items() if name != one}, file)
    with pytest.raises(ModelError, match=rf"{re.escape(one)} is not in the adapter"):
        loading.load_policy(policy, "float32")
    save_file({**weights, one.replace("layers.0", "layers.7"): weights[one].clone()}, file)
    with pytest.raises(ModelError, match=r"layers.7.* is in the adapter alone"):
        loading.load_policy(policy, "float32")
