"""The settings of an adapter: which are refused, by whom, and what rsLoRA's scale is in every stage."""

from __future__ import annotations

import copy
import datetime
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from iris_core.common.errors import ConfigError
from iris_core.config import Experiment, parse_experiment
from iris_core.data.templates import Template
from iris_core.evaluation import harness
from iris_core.generate import generate
from iris_core.modeling import loading
from iris_core.modeling.lora import check_targets
from iris_core.pipeline import plan
from iris_core.pipeline.specs import TrainSpec
from iris_core.prepare import prepare
from iris_core.store import Artifact, Manifest, Policy, run_stage
from iris_core.train import train
from iris_core.training.policy import trainable_policy

unit = pytest.mark.unit
integration = pytest.mark.integration
LAYERS = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


def experiment(model: Path, pairs: Path, **lora: Any) -> Experiment:
    return parse_experiment(
        {
            "name": "test",
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"path": str(pairs), "heldout": 4},
            "generation": {"backend": "transformers", "max_new_tokens": 4},
            "training": {"learning_rate": 5e-3, "batch_size": 10, "epochs": 1, "lora": lora},
            "evaluation": {"backend": "hf"},
        }
    )


@unit
@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"dropout": 0.1}, r"training.lora: dropout is not supported: policy and opponent are scored in the same mode"),
        ({"use_dora": True}, r"training.lora: use_dora is not supported: vLLM serves no adapter with it"),
        ({"modules_to_save": ["lm_head"]}, r"training.lora: modules_to_save is not supported: vLLM serves"),
        ({"bias": "all"}, r"training.lora: bias is not supported"),
        ({"init_lora_weights": "pissa"}, r"training.lora: init_lora_weights is not supported: the first update is 0"),
        ({"rank": 600}, r"training.lora.rank: Input should be less than or equal to 512 \(got 600\)"),
        (
            {"targets": []},
            r"training.lora.targets: names no layer: give names of linear layers, or all-linear \(got \[\]\)",
        ),
        ({"targets": ["q_proj", ""]}, r"training.lora.targets: names no layer"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(Path("m"), Path("d"), **lora)


@unit
@pytest.mark.parametrize(
    ("targets", "fits"),
    [
        (["q_prj"], "'q_prj' fits no layer"),
        (["q_proj", "vproj"], "'vproj' fits no layer"),
        ("q_proj", "'q_proj' fits no layer"),
        ("q_proj,v_proj", "'q_proj,v_proj' fits no layer"),
        ("(", r"'\(' fits no layer"),
        (["all-linear"], "'all-linear' fits no layer"),
        (["self_attn"], "'self_attn' fits model.layers.0.self_attn, which cannot be adapted"),
        (["embed_tokens"], "'embed_tokens' fits model.embed_tokens, which cannot be adapted"),
        (["lm_head"], "'lm_head' fits lm_head, which cannot be adapted"),  # it is the embedding
    ],
)
def test_prepare_names_the_layers_there_are(
    tiny_model: Path, pairs_file: Path, tmp_path: Path, targets: Any, fits: str
) -> None:
    config = experiment(tiny_model, pairs_file, targets=targets)
    with pytest.raises(
        ConfigError,
        match=rf"training.lora.targets: {fits}; the linear layers of LlamaForCausalLM are {LAYERS}: give a list",
    ):
        run_stage(plan.prepare_spec(config), tmp_path, prepare)


@unit
@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("all-linear", 14),
        (["q_proj", "v_proj"], 4),
        (r".*\.(q|v)_proj", 4),
        (["layers.0.mlp.up_proj"], 1),
    ],
)
def test_targets_that_peft_finds_are_let_in(tiny_model: Path, targets: Any, layers: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    check_targets(model, targets)
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    assert len(adapted.base_model.targeted_module_names) == layers


@unit
def test_gpt_2_has_linear_layers_of_its_own_kind() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    check_targets(model, "all-linear")
    check_targets(model, ["c_attn"])
    with pytest.raises(ConfigError, match="linear layers of GPT2LMHeadModel are c_attn, c_fc, c_proj"):
        check_targets(model, ["q_proj"])


@unit
def test_targets_are_no_matter_where_all_weights_are_trained(tiny_model: Path, pairs_file: Path) -> None:
    config = experiment(tiny_model, pairs_file, targets=["nothing"])
    full = config.model_copy(update={"training": config.training.model_copy(update={"method": "full"})})
    lora = plan.prepare_spec(config).lora
    assert lora
    assert lora.targets == ["nothing"]
    assert plan.prepare_spec(full).lora is None


@integration
def test_vllm_scales_rslora_alike(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from vllm.lora.peft_helper import PEFTHelper

    LoraConfig(r=12, lora_alpha=32, use_rslora=True, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(
        tmp_path
    )
    helper = PEFTHelper.from_dict(json.loads((tmp_path / "adapter_config.json").read_text()))
    assert helper.vllm_lora_scaling_factor == pytest.approx(32 / math.sqrt(12))


def run_train(config: Experiment, folder: Path) -> tuple[TrainSpec, Manifest]:
    """One iteration up to training."""
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(config), folder / "prepare", prepare))
    state = prepared.start(config)
    generated = run_stage(plan.generate_spec(config, prepared, state), folder / "generate", generate)
    spec = plan.train_spec(config, prepared, state, generated)
    return spec, run_stage(spec, folder / "train", train)


def scale(model: Any) -> set[float]:
    return {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}


@integration
def test_rslora_has_one_scale_in_every_stage(tiny_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    """Rank 12, alpha 6: 6 / sqrt(12), where plain LoRA has 6 / 12."""
    config = experiment(tiny_model, pairs_file, rank=12, alpha=6, use_rslora=True)
    spec, trained = run_train(config, tmp_path)
    policy = plan.trained_policy(spec.policy, trained)
    assert policy.adapter is not None
    expected = {6 / math.sqrt(12)}
    loaded = loading.load_policy(policy, "float32")  # what generate, evaluate and load_model read
    following = trainable_policy(spec.model_copy(update={"policy": policy, "opponent": policy}))
    assert scale(trainable_policy(spec)) == scale(loaded) == scale(following) == expected
    ids = torch.tensor([[3, 9, 27, 81]])
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    plain = base(ids).logits
    peft = PeftModel.from_pretrained(base, policy.adapter.path)(ids).logits
    found = loaded(ids).logits
    torch.testing.assert_close(found, peft, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 1e-3
    torch.testing.assert_close(following.eval()(ids).logits, found)
    merged = loaded.merge_and_unload()(ids).logits  # what vLLM is given on a CPU
    torch.testing.assert_close(merged, found, rtol=1e-4, atol=1e-5)


@integration
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_does_not_round_a_small_adapter_away(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    """An update below the last bit of most weights in bf16: added to the weights there, it would be gone."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-4)
    adapted.save_pretrained(tmp_path)
    policy = Policy(model=Artifact.of(tiny_model), adapter=Artifact.of(tmp_path))
    template = Template(loading.load_tokenizer(tiny_model), {}, datetime.date(2026, 1, 1))
    lm = harness.open_model(
        policy, "hf", dtype, template=template, stop_token_ids=[2], trust_remote_code=False, batch_size=2
    )
    ids = torch.tensor([[3, 9, 27, 81]])
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    assert not torch.equal(lm.model(ids).logits, plain(ids).logits)
    merged = copy.deepcopy(adapted).merge_and_unload()
    pairs = zip(merged.named_parameters(), plain.parameters(), strict=True)
    kept = torch.cat([(a == b).flatten() for (name, a), b in pairs if "_proj" in name])
    share = kept.float().mean().item()
    assert share > 0.8 if dtype == "bfloat16" else share < 0.1
