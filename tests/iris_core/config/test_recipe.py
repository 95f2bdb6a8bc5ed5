"""Recipes that cannot be read, and settings that lead nowhere, each with one message that says what to do."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from iris_core.common.errors import ConfigError
from iris_core.config import parse_experiment
from iris_core.config.recipe import load_recipe, parse_settings
from iris_core.config.yaml12 import read
from iris_core.pipeline.plan import recipe_yaml
from tests.iris_core.config.test_yaml12 import AMBIGUOUS

pytestmark = pytest.mark.unit

BASE = {"name": "x", "model": {"path": "m"}, "data": {"path": "d"}}
HEAD = "name: x\nmodel: {path: m}\ndata: {path: d}\n"


def recipe(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


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
        (b"name: [x", r"recipe\.yaml, line 1: not YAML \(while parsing"),
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


def test_a_section_that_stands_twice_is_refused_with_both_lines(tmp_path):
    path = recipe(tmp_path, HEAD + "training: {epochs: 5}\nseed: 1\ntraining: {batch_size: 8}\n")
    with pytest.raises(
        ConfigError,
        match=r"recipe\.yaml, line 6: 'training' is there twice, first in line 4: keep one",
    ):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  batch_size: 064", r"line 5: training\.batch_size: .*got '064'.*write 64, or 52 if it is octal"),
        ("seed: 0o17", r"line 4: seed: .*'0o17'.*write 15"),
        ("seed: 1_000", r"line 4: seed: .*'1_000'.*write 1000"),
        ("seed: 1:30", r"line 4: seed: .*'1:30'.*write a number in digits"),
        ("seed: '7'", r"line 4: seed: .*'7'.*write 7 without quotes"),
        ("seed: yes", r"line 4: seed: .*'yes'.*write a number in digits"),
        ("seed: true", r"line 4: seed: .*got True"),
        ("iterations: 3.0", r"line 4: iterations: .*got 3\.0.*write 3"),
        ("iterations: null", r"line 4: iterations: .*leave the key out for the default"),
        ("training: {gradient_checkpointing: yes}", r"gradient_checkpointing: .*got 'yes'.*write true"),
        ("training: {gradient_checkpointing: off}", r"gradient_checkpointing: .*got 'off'.*write false"),
        ("training: {gradient_checkpointing: 1}", r"gradient_checkpointing: .*got 1.*write true"),
        ("training: {learning_rate: '5e-7'}", r"learning_rate: .*write 5e-7 without quotes"),
        ("training: {learning_rate: .nan}", r"line 4: training\.learning_rate: .*finite number"),
        ("objective: {beta: none}", r"objective\.beta: .*leave the key out for the default"),
        ("store: 2024", r"line 4: store: .*got 2024.*put it in quotes"),
        (
            "evaluation: {limit: none}",
            r"evaluation\.limit: is a word like any other: .*leave the key out or write null",
        ),
        ("evaluation: {data_dir: None}", r"evaluation\.data_dir: is a word like any other"),
        ("evaluation: {data_dir: ''}", r"evaluation\.data_dir: is empty: .*leave the key out or write null"),
        ("tracking: {registered_model: NONE}", r"tracking\.registered_model: is a word like any other"),
        ("training.epochs: 3", r"line 4: training\.epochs: unknown key; .*in a recipe write training: \{epochs: …\}"),
        ("training:\n  lora.rank: 3", r"line 5: training\.lora\.rank: unknown key; .*write lora: \{rank: …\}"),
        ("training:\n  epoch: 3", r"line 5: training\.epoch: unknown key; known here: method"),
        ("evaluation:\n  benchmarks:\n  - gsm8k\n  - gsm9k", r"line 7: evaluation\.benchmarks\.1: Input should be"),
    ],
)
def test_what_is_ambiguous_or_wrong_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(recipe(tmp_path, HEAD + text))
    assert "\n" not in str(caught.value)


def test_the_word_none_is_no_system_prompt(tmp_path):
    text = "name: x\nmodel: {path: m}\ndata:\n  path: d\n  system_prompt: none\n  heldout_path: None"
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert "line 5: data.system_prompt: is a word like any other" in lines[0]
    assert "line 6: data.heldout_path" in lines[1]


def test_null_is_nothing(tmp_path):
    data = "name: x\nmodel: {path: m}\ndata: {path: d, system_prompt: null, max_pairs: ~}"
    experiment = load_recipe(recipe(tmp_path, data + "\nevaluation: {limit: }"))
    assert experiment.data.system_prompt is None
    assert experiment.data.max_pairs is None
    assert experiment.evaluation.limit is None


OPTIONAL = st.none() | (st.sampled_from(AMBIGUOUS) | st.text(st.characters(exclude_categories=["Cs"]))).filter(
    lambda text: text.strip().lower() not in ("", "none")
)


@given(OPTIONAL, st.floats(1e-12, 0.9), st.integers(0, 2**32 - 1), st.booleans())
def test_an_experiment_is_written_and_read_back(system, rate, seed, initial):
    content = {
        **BASE,
        "seed": seed,
        "data": {"path": "d", "system_prompt": system},
        "training": {"learning_rate": rate},
        "evaluation": {"initial": initial},
    }
    experiment = parse_experiment(content)
    assert parse_experiment(read(recipe_yaml(experiment)).value) == experiment


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name.x": 1}, r"name\.x: name is 'x', not a mapping: it has no key 'x' to set"),
        ({"training": 3, "training.epochs": 1}, r"training\.epochs: training is 3, not a mapping"),
        ({"training": 3}, r"--set: training: a mapping with the keys method"),
        ({"training.epoch": 3}, r"--set: training\.epoch: unknown key"),
        ({"seed": -1}, r"--set: seed: "),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path, overrides, message):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "recipe.yaml", overrides)


def test_overrides_of_a_part_that_stands_empty(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**BASE, "training": None}))
    assert load_recipe(tmp_path / "recipe.yaml", {"training.epochs": 1}).training.epochs == 1


def test_a_mapping_changes_what_it_names(tmp_path):
    path = recipe(tmp_path, HEAD + "training: {learning_rate: 0.5, lora: {rank: 4, alpha: 3}}")
    training = load_recipe(path, {"training": {"epochs": 1, "lora": {"rank": 8}}}).training
    assert (training.epochs, training.learning_rate) == (1, 0.5)
    assert (training.lora.rank, training.lora.alpha) == (8, 3)


def test_an_override_of_one_alias_leaves_the_other(tmp_path):
    path = recipe(tmp_path, "name: x\nmodel: &m {path: m}\ndata: *m\n")
    experiment = load_recipe(path, {"data.path": "d"})
    assert (experiment.model.path, experiment.data.path) == ("m", "d")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("k=#### (.*)", "#### (.*)"),
        ("k=a:b", "a:b"),
        ("k=a: b #c", "a: b #c"),
        ("k=C:\\x", "C:\\x"),
        ("k=a=b", "a=b"),
        ("k=1", 1),
        ("k= 1e-5 ", 1e-5),
        ("k=true", True),
        ("k=null", None),
        ("k=", None),
        ("k=none", "none"),
        ("k=064", "064"),
        ("k=*a", "*a"),
        ("k=|", "|"),
        ("k=- a", "- a"),
        ("k=a, b", "a, b"),
        ("k=[a, 'b #c', 1]", ["a", "b #c", 1]),
        ("k={a: 1}", {"a": 1}),
        ("k='null'", "null"),
        ('k="a\\nb"', "a\nb"),
        ("k='[0-9] (.+)'", "[0-9] (.+)"),
    ],
)
def test_settings_keep_their_value(setting, value):
    assert parse_settings([setting]) == {"k": value}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.epochs"], r"--set training\.epochs: write KEY=VALUE"),
        (["=1"], r"--set =: write KEY=VALUE"),
        (["a..b=1"], r"--set a\.\.b=: write KEY=VALUE"),
        (["seed=1", "seed=2"], r"--set seed is there twice: keep one of them"),
        (["training={epochs: 1}", "training.epochs=2"], r"--set sets training\.epochs twice"),
        (["training={epochs: 1, epochs: 2}"], r"--set training: .*'epochs' is there twice"),
        (["k=[a"], r"--set k: the value starts like YAML and is not"),
        (["k=[a-z]+ (.*)"], r"--set k: .*to use it as plain text, put it in '…'"),
        (["k='a' # b"], r"--set k: something follows after the value"),
        (["k=[a] # b"], r"--set k: something follows after the value"),
    ],
)
def test_settings_that_are_none(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(settings)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("tracking: postgresql://me:hunter2@host/db", []),
        ("tracking: {uri: 'postgresql://me:hunter2@host/db'}", []),
        ("tracking: {uri: [hunter2]}", []),
        ("tracking: {uri: 'x://me:hunter@2/hunter2@host/db'}", []),
        ("tracking: {uri: 'http://host:hunter2'}", []),
        ("model: {path: 3, revision: ['https://me:hunter2@host/x']}", []),
        ("", ["tracking.uri=[http://me:hunter2@host"]),
        ("", ["tracking.uri='http://me:hunter2@host' x"]),
        ("tracking: 'http://me:hunter2@host'", ["tracking.uri=http://host"]),
    ],
)
def test_secrets_are_not_repeated(tmp_path, text, settings):
    head = HEAD.replace("model: {path: m}\n", "") if text.startswith("model") else HEAD
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, head + text), parse_settings(settings))
    assert "hunter" not in str(caught.value)
