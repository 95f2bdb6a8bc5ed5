"""Every decoder class of transformers equals its own plain forwards, or is refused in one line.

docs/models.md has a table of what is found here; `python -m tests.iris_core.modeling.test_architectures` writes it.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from iris_core.config import LoraPart
from iris_core.data.packing import Group
from iris_core.modeling import tiny
from iris_core.modeling.architectures import Proof, plain_logprobs, probe
from iris_core.modeling.loading import load_policy
from iris_core.modeling.scoring import score
from iris_core.store import Artifact, Policy

pytestmark = pytest.mark.unit

TABLE = Path(__file__).parents[3] / "docs" / "models.md"
SETTINGS = {  # where the class's own defaults do not run, or leave out what its models are made of
    "bert": {"is_decoder": True},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"] * 20},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "zamba": {  # small as it is: its layers share weights, so that many are needed
        "hidden_size": 64,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "mamba_dt_rank": 4,
        "vocab_size": 96,
        "num_hidden_layers": 12,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 4,
    },
}
VARIANTS = {  # of classes whose settings decide
    "bert, an encoder": ("bert", {}),
    "falcon, alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 4096,
                "long_factor": [4.0] * 48,
                "short_factor": [1.0] * 48,
            },
        },
    ),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2}),
}
NAMES = sorted([*CLASSES, *VARIANTS])
GROUPS = [
    Group([20, 31, 42, 50, 23], ([30], [25, 61, 22, 12, 60])),
    Group([33], ([17, 18, 19, 21], [64, 65])),
]
LONG = Group([*range(15, 30)], ([*range(40, 50)], [*range(60, 75)]))


def configuration(name):
    """The configuration of a real size, or a skip where it takes others that only its makers know."""
    kind, settings = VARIANTS.get(name) or (name, SETTINGS.get(name, {}))
    try:
        return AutoConfig.for_model(kind, **settings)
    except Exception as error:
        pytest.skip(f"{name} has no default configuration: {type(error).__name__}")


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small are slower on several, which wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def proof(name) -> Proof:
    config = configuration(name)
    return probe(config)


def rows(found: Proof) -> str:
    """The word of the table."""
    if found.separate is not None:
        return "refused"
    if found.packed is None:
        return "packed"
    return "separate" if found.short else "packed within its window"


def saved(config, folder):
    """The first small model of this kind that runs, in a folder as users have it."""
    for small in tiny.variants(config):
        try:
            model = tiny.build(small, "eager")
            plain_logprobs(model, [LONG])
        except Exception:
            continue
        model.save_pretrained(folder)
        small.save_pretrained(folder)  # with what is around a language model, as its makers have it
        return Policy(model=Artifact(path=folder, digest="unchecked"))
    raise AssertionError("none runs")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_let_in_equals_plain_forwards_and_the_rest_is_refused_in_a_line(name, tmp_path):
    found = proof(name)
    for reason in (found.packed, found.short, found.separate):
        assert reason is None or (reason and "\n" not in reason and len(reason) < 250)
    if found.separate is not None:
        return
    policy = saved(configuration(name), tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32).eval()
    model = load_policy(policy, "float32")
    groups = [*GROUPS, LONG]
    with torch.no_grad():
        expected = plain_logprobs(reference, groups)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(score(model, groups, 1000, packing="separate"), expected, **close)
    if found.short is None:
        groups = groups if found.packed is None else GROUPS
        packed = score(model, groups, 1000, packing="packed")
        torch.testing.assert_close(packed, expected[: len(groups)], **close)


LEAKING = [
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "zamba2",
]


@pytest.mark.parametrize("name", LEAKING)
def test_models_with_a_state_are_never_packed(name):
    assert rows(proof(name)) == "separate"


POPULAR = [
    "cohere",
    "cohere2",
    "deepseek_v3",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo2",
    "olmo3",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2, windows",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
]


@pytest.mark.parametrize("name", POPULAR)
def test_popular_models_are_let_in_with_an_adapter_and_gradient_checkpointing(name):
    assert probe(configuration(name), LoraPart(), checkpointing=True).separate is None


def test_noise_that_no_setting_turns_off_is_found():
    """PhiMoE's router draws experts in training mode, which layers need to recompute activations."""
    config = configuration("phimoe")
    assert rows(probe(config)) == "packed"
    assert "draws random numbers in training mode" in str(probe(config, checkpointing=True).separate)


def test_longrope_is_packed_up_to_where_the_scaling_changes():
    assert rows(proof("phi3, longrope")) == "packed within its window"


def test_the_table_in_the_docs_is_what_is_found():
    assert TABLE.read_text(encoding="utf-8").partition(MARK)[2] == table()


MARK = "<!-- from here on written by tests/iris_core/modeling/test_architectures.py -->\n"


def table() -> str:
    lines = ["| model_type | class | rows | why |", "|---|---|---|---|"]
    for name in NAMES:
        kind = VARIANTS.get(name, (name,))[0]
        try:
            found = proof(name)
        except pytest.skip.Exception:
            lines.append(f"| {name} | {CLASSES[kind]} | not tested | no default configuration |")
            continue
        lines.append(f"| {name} | {CLASSES[kind]} | {rows(found)} | {why(found)} |")
    return "\n".join(lines) + "\n"


def why(found: Proof) -> str:
    """The reason in words that do not depend on a machine's rounding or a library's messages."""
    reason = found.separate or found.packed or ""
    if re.search("is off|are off", reason):
        what = "sequences" if found.separate else "packed rows"
        return f"{what} change its log-probabilities or gradients"
    if re.match(r"\w+(Error|Exit): ", reason):
        return "it fails on them" if found.separate is None else "a small one of it does not run"
    return reason


if __name__ == "__main__":
    text = TABLE.read_text(encoding="utf-8").partition(MARK)
    TABLE.write_text(text[0] + MARK + table(), encoding="utf-8")
