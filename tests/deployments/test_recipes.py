"""The recipes that come with IRIS: each fits its hardware, has a deployment, and can be compared.

The configurations of the two models are their published `config.json`, by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.demo import RECIPES
from iris_core.common.errors import ConfigError
from iris_core.config import Experiment, parse_experiment
from iris_core.config.objective import COMPARED
from iris_core.config.recipe import load_recipe
from iris_core.modeling.sizes import recipe_sizes
from iris_core.pipeline.members import member
from iris_core.pipeline.sizes import Sizes
from iris_core.reporting.machine import parse_machine
from iris_core.reporting.resources import resources

pytestmark = pytest.mark.unit

FILES = sorted(set(RECIPES.glob("*.yaml")) - {RECIPES / "demo.yaml", RECIPES / "sql-demo.yaml"})
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "alignment-handbook/zephyr-7b-sft-full": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Qwen/Qwen2.5-3B": QWEN,
    "Qwen/Qwen2.5-Coder-3B-Instruct": QWEN,
}


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sizes]:
    """Of every model, by name."""
    found = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(json.dumps(config))
        found[name] = recipe_sizes(load_recipe(FILES[0], {"model.path": str(folder)}))
    return found


def hardware(file: Path) -> str:
    """The machine that a recipe names in its comment."""
    found = re.search(r"^# Hardware: (\S+),", file.read_text(), re.MULTILINE)
    assert found, file
    return found[1]


def test_sizes_of_the_published_models(sizes: dict[str, Sizes]) -> None:
    assert sizes["alignment-handbook/zephyr-7b-sft-full"].parameters == 7_241_732_096
    assert sizes["Qwen/Qwen2.5-3B"].parameters == 3_085_938_688


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_plan_accepts_the_hardware_of_a_recipe(file: Path, sizes: dict[str, Sizes]) -> None:
    experiment = load_recipe(file)
    needs = resources(experiment, sizes[experiment.model.path], parse_machine(hardware(file)))
    needs.check()
    assert needs.sharding == ("full" if experiment.training.method == "full" else "none")
    assert isinstance(needs.hours["train"], float)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_has_a_deployment_with_its_settings(file: Path) -> None:
    content = yaml.safe_load((RECIPES.parent / "prefect.yaml").read_text())
    (parameters,) = [item["parameters"] for item in content["deployments"] if item["name"] == file.stem]
    deployed = parse_experiment(parameters["experiment"])
    assert deployed == load_recipe(file, {"store": deployed.store})


def test_the_schedule_is_paused() -> None:
    content = yaml.safe_load((RECIPES.parent / "prefect.yaml").read_text())
    schedules = [each for item in content["deployments"] for each in item.get("schedules", [])]
    assert [(each["cron"], each["active"]) for each in schedules] == [("0 3 * * 6", False)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_can_be_compared(file: Path) -> None:
    experiment = load_recipe(file)
    members = [member(experiment, name, 0) for name in COMPARED]
    assert [loop.objective.name for loop in members] == COMPARED
    assert all(isinstance(loop, Experiment) and loop.training == experiment.training for loop in members)


def test_spin_as_published() -> None:
    """arXiv 2401.01335, appendix B.1: 5e-7 in iterations 0 and 1, 1e-7 in iterations 2 and 3."""
    training = load_recipe(RECIPES / "zephyr-7b-spin-50k.yaml").training
    assert [training.rate(iteration) for iteration in range(4)] == [5e-7, 5e-7, 1e-7, 1e-7]


def test_zephyr_without_recomputation_needs_more_than_40_gb(sizes: dict[str, Sizes]) -> None:
    settings = {"training.gradient_checkpointing": False}
    experiment = load_recipe(RECIPES / "zephyr-7b-ultrachat-50k.yaml", settings)
    needs = resources(experiment, sizes[experiment.model.path], parse_machine("8xA100-40GB"))
    with pytest.raises(
        ConfigError, match=r"8 × A100 with 40 GB.*: to make it fit, set training.gradient_checkpointing: true \(\d\d%\)"
    ):
        needs.check()
