"""What `iris plan` finds: which experiment fits which machine, and what would make it fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import MambaConfig, MistralConfig, T5Config

from deployments.demo import RECIPES
from iris_core.common.errors import ConfigError, ModelError
from iris_core.config.recipe import load_recipe
from iris_core.reporting.resources import Machine, parse_machine, resources, rows

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def zephyr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of Mistral-7B, as Zephyr's is; no weights are needed."""
    folder = tmp_path_factory.mktemp("zephyr")
    MistralConfig(
        architectures=["MistralForCausalLM"],
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    return folder


def test_machines_by_name() -> None:
    assert parse_machine("8xH100-80GB") == Machine(8, "H100", 80e9)
    assert parse_machine("8xA100-SXM4-80GB") == Machine(8, "A100-SXM4", 80e9)
    assert parse_machine("L40S-48GB") == Machine(1, "L40S", 48e9)


@pytest.mark.parametrize("text", ["", "8", "8xH100", "0xH100-80GB", "H100-80", "8 x H100-80GB", "8xH100-80TB"])
def test_what_names_no_machine_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write number, name and memory, as in 8xH100-80GB"):
        parse_machine(text)


def test_full_training_of_zephyr_does_not_fit_and_lora_does(zephyr: Path) -> None:
    """7.24 B parameters at 12 bytes are 86.9 GB, and 14.5 GB the bf16 copies of the matrices: above any 80 GB."""
    recipe = load_recipe(RECIPES / "zephyr-7b-ultrachat-50k.yaml", {"model.path": str(zephyr)})
    needs = resources(recipe, parse_machine("8xH100-80GB"))
    assert needs.sizes.parameters == 7_241_732_096
    assert needs.memory.held["weights"] == 4 * 7_241_732_096
    assert needs.host == 8 * 4 * 7_241_732_096
    assert needs.traffic == 2 * 7 / 8 * 4 * 7_241_732_096
    with pytest.raises(ConfigError, match=r"8 × H100 with 80 GB.*more than 90%: set training.method: lora \(\d+%\)"):
        needs.check()
    lora = load_recipe(RECIPES / "zephyr-7b-ultrachat-50k.yaml", {"model.path": str(zephyr), "training.method": "lora"})
    fitting = resources(lora, parse_machine("8xH100-80GB"))
    fitting.check()
    assert fitting.share < 0.4  # bf16 weights alone are 14.5 GB of 80
    assert fitting.fitting == {}


def test_what_nothing_makes_fit_says_so(zephyr: Path) -> None:
    recipe = load_recipe(RECIPES / "zephyr-7b-ultrachat-26k.yaml", {"model.path": str(zephyr)})
    with pytest.raises(ConfigError, match="no setting of training makes it fit: take larger GPUs or another model"):
        resources(recipe, parse_machine("T4-16GB")).check()


def test_a_row_is_as_long_as_the_longest_pair(zephyr: Path) -> None:
    """A pair of 16,384 + 1,024 + 256 tokens gets a row of its own, in whatever budget: half of it saves nothing."""
    lora = {"model.path": str(zephyr), "training.method": "lora", "training.gradient_checkpointing": False}
    long, wide = (
        resources(
            load_recipe(RECIPES / "zephyr-7b-ultrachat-26k.yaml", {**lora, name: tokens}), Machine(1, "GPU", 40e9)
        )
        for name, tokens in (("data.max_prompt_tokens", 16384), ("training.tokens_per_batch", 17664))
    )
    assert long.memory == wide.memory
    assert list(long.fitting) == ["training.gradient_checkpointing: true"]
    assert len(wide.fitting) == 2


def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path: Path) -> None:
    settings = {"model.path": str(tmp_path), "training.method": "full"}
    MambaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    small = resources(load_recipe(RECIPES / "demo.yaml", settings), parse_machine("GPU-1GB"))
    with pytest.raises(ConfigError, match="no setting of training makes it fit"):  # PEFT has no adapter for it
        small.check()
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is no causal language model .*model_type: t5"):
        resources(load_recipe(RECIPES / "demo.yaml", settings), parse_machine("GPU-1GB"))


def test_every_part_is_a_row(zephyr: Path) -> None:
    recipe = load_recipe(RECIPES / "zephyr-7b-ultrachat-26k.yaml", {"model.path": str(zephyr)})
    found = dict(rows(resources(recipe, parse_machine("8xH100-80GB"))))
    assert found["each GPU: weights"] == found["each GPU: gradients"] == "29.0 GB"
    assert found["each GPU: weights in the sampling engine"] == "14.5 GB"
    assert found["sent by each GPU in an optimiser step"] == "50.7 GB"
    assert "each GPU: adapter" not in found
