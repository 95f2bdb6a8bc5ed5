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
        (
            {"objective": {"beta": "abc"}},
            r"objective.beta: Input should be a valid number.*\(got 'abc'\)",
        ),
        (
            {"training": {"learning_rate": float("nan")}},
            r"training.learning_rate: Input should be a finite number \(got nan\)",
        ),
        (
            {"objective": {"weight_clip": float("inf")}},
            r"objective.weight_clip: Input should be a finite number \(got inf\)",
        ),
        (
            {"iterations": 0},
            r"iterations: Input should be greater than or equal to 1 \(got 0\)",
        ),
        (
            {"training": 3},
            r"training: a mapping with the keys method, lora, .* is needed \(got 3\)",
        ),
        (
            {"training": {"lora": [1]}},
            r"training.lora: a mapping with the keys rank, alpha, targets is needed",
        ),
        (
            {"data": {"path": "d", "answer_pattern": "("}},
            r"data.answer_pattern: not a regular expression .*mend it, or leave it out \(got '\('\)",
        ),
        (
            {"data": {"path": "d", "answer_pattern": {"Answer": "(.+)"}}},
            r"data.answer_pattern: Input should be a valid string \(got \{'Answer': '\(\.\+\)'\}\)",
        ),
        ({1: 2}, r"1: Keys should be strings"),
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


def test_every_field_has_a_description():
    def walk(schema):
        for name, field in schema.get("properties", {}).items():
            assert "description" in field, name
        for part in schema.get("$defs", {}).values():
            walk(part)

    walk(Experiment.model_json_schema())
