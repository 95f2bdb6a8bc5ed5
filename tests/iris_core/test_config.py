"""Wrong settings, each with one line that names the field, the value and the remedy."""

import pytest

from iris_core.config import Experiment, parse_experiment
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
            r"data.answer_pattern: not a regular expression .*fix it, or leave it out \(got '\('\)",
        ),
        (
            {"data": {"path": "d", "answer_pattern": {"Answer": "(.+)"}}},
            r"data.answer_pattern: Input should be a valid string \(got \{'Answer': '\(\.\+\)'\}\)",
        ),
        ({1: 2}, r"1: Keys should be strings"),
        ({"name": "objects"}, r"name: the store uses this name itself: choose another"),
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


def test_every_field_has_a_description():
    def walk(schema):
        for name, field in schema.get("properties", {}).items():
            assert "description" in field, name
        for part in schema.get("$defs", {}).values():
            walk(part)

    walk(Experiment.model_json_schema())
