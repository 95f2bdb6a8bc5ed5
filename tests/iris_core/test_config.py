"""Wrong settings, each with one line that names the field, the value and the remedy."""

import pytest
import yaml

from iris_core.config import Experiment, load_recipe, parse_experiment
from iris_core.errors import ConfigError

pytestmark = pytest.mark.unit

BASE = {"name": "x", "model": {"path": "m"}, "data": {"path": "d"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"beta": 0}}, r"objective.beta: Input should be greater than 0 \(got 0\)"),
        ({"objective": {"bta": 1}}, r"objective.bta: unknown key; known here: name, beta"),
        (
            {"training": {"lora": {"rnk": 1}}},
            r"training.lora.rnk: unknown key; known here: rank, alpha, targets",
        ),
        (
            {"schedule": {"min_order": 3}},
            r"min_order is 3.0, above max_order 2.0: lower schedule.min_order",
        ),
        (
            {"schedule": {"max_order": 99}},
            r"schedule.max_order: Input should be less than 50 \(got 99\)",
        ),
        (
            {"evaluation": {"benchmarks": ["gsm9k"]}},
            r"evaluation.benchmarks.0: Input should be 'gsm8k'",
        ),
        ({"name": "a/b"}, r"name: String should match pattern"),
        ({"colour": 1}, r"colour: unknown key; known here: name, iterations"),
    ],
)
def test_wrong_values(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_experiment({**BASE, **change})


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_experiment({"name": "x", "model": {}, "objective": {"beta": -1}})
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "model.path",
        "data",
        "objective.beta",
    ]


def test_a_recipe_with_overrides(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    experiment = load_recipe(path, {"training.lora.rank": 4, "iterations": 1})
    assert experiment.training.lora.rank == 4
    assert experiment.iterations == 1
    assert experiment.tracking_uri.startswith("sqlite:////")


def test_a_recipe_that_is_missing_or_no_mapping(tmp_path):
    with pytest.raises(ConfigError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="a recipe is a mapping with the keys name, iterations"):
        load_recipe(tmp_path / "list.yaml")


def test_every_field_has_a_description():
    def walk(schema):
        for name, field in schema.get("properties", {}).items():
            assert "description" in field, name
        for part in schema.get("$defs", {}).values():
            walk(part)

    walk(Experiment.model_json_schema())
