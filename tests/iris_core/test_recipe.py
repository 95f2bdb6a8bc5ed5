"""Recipes that cannot be read, and settings that lead nowhere, each with one message that says what to do."""

import pytest
import yaml

from iris_core.errors import ConfigError
from iris_core.recipe import load_recipe

pytestmark = pytest.mark.unit

BASE = {"name": "x", "model": {"path": "m"}, "data": {"path": "d"}}


def test_a_recipe_with_overrides(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    experiment = load_recipe(path, {"training.lora.rank": 4, "iterations": 1})
    assert experiment.training.lora.rank == 4
    assert experiment.iterations == 1
    assert experiment.tracking_uri.startswith("sqlite:////")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no recipe .*recipe\.yaml"),
        (b"", r"recipe\.yaml: a recipe is a mapping with the keys name, iterations.* is empty"),
        (b"- 1", r"recipe\.yaml: a recipe is a mapping with the keys .*; this one is a list"),
        (b"name: [x", r"recipe\.yaml is not YAML: while parsing"),
        ("name: é".encode("latin-1"), r"recipe\.yaml is not UTF-8 text .*byte 6.*save it as UTF-8"),
    ],
)
def test_a_recipe_that_is_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_recipe_that_is_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\): give a YAML file"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name.x": 1}, r"name\.x: name is 'x', not a mapping: it has no key 'x' to set"),
        ({"training": 3, "training.epochs": 1}, r"training\.epochs: training is 3, not a mapping"),
        ({"training": 3}, r"training: a mapping with the keys method"),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path, overrides, message):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "recipe.yaml", overrides)


def test_overrides_of_a_part_that_stands_empty(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**BASE, "training": None}))
    assert load_recipe(tmp_path / "recipe.yaml", {"training.epochs": 1}).training.epochs == 1
