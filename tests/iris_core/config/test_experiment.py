"""Wrong settings, each with one line that names the field, the value and the remedy."""

import pytest

from iris_core.common.errors import ConfigError
from iris_core.config import Experiment, SchedulePart, parse_experiment, yaml12
from iris_core.pipeline.plan import SEED_STRIDE, recipe_yaml

pytestmark = pytest.mark.unit

BASE = {"name": "x", "model": {"path": "m"}, "data": {"path": "d"}}
MATH = {"verification": {"kind": "math"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"beta": 0}}, r"objective.beta: Input should be greater than 0 \(got 0\)"),
        ({"objective": {"bta": 1}}, r"objective.bta: unknown key; known here: name, beta"),
        (
            {"training": {"lora": {"rnk": 1}}},
            r"training.lora.rnk: unknown key; known here: rank, alpha, use_rslora, targets",
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
            r"training.lora: a mapping with the keys rank, alpha, use_rslora, targets is needed",
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
        (
            {"data": {"path": "d", "answer_pattern": "Answer: .+"}},
            r"data\.answer_pattern: has 0 groups and needs one",
        ),
        (
            {"data": {"path": "d", "answer_pattern": "(A|B): (.+)"}},
            r"has 2 groups and needs one.*\(\?:…\) for other groups",
        ),
        (
            {"data": {"path": "d", "answer_pattern": "(.*)$"}},
            r"data\.answer_pattern: fits the empty text",
        ),
        ({"data": {"path": "d", "heldout_path": "d"}}, r"data: heldout_path is path itself \(d\)"),
        (
            {"training": {"lora": {"targets": 3}}},
            r"training\.lora\.targets: Input should be a valid string \(got 3\)",
        ),
        (
            {"training": {"lora": {"targets": ["q", 3]}}},
            r"training\.lora\.targets\.1: Input should be a valid string",
        ),
        ({"seed": 2**32}, r"seed: Input should be less than 4294967296"),
        ({"seed": -1}, r"seed: Input should be greater than or equal to 0"),
        (
            {"name": "x" * 201},
            r"name: String should have at most 200 characters \(got 'xxx.*\.\.\..*'\)",
        ),
        ({"name": "Mlflow.db-wal"}, r"name: the store uses this name itself"),
        (
            {"store": "/data/run?1"},
            r"store: has \? in its path \(/data/run\?1\), which MLflow takes for a part of an address",
        ),
        ({"store": "50%41/a?"}, r"store: has \? and % in its path"),
        ({"store": "~nobody-here/x"}, r"store: starts with ~ and names no user"),
        ({"store": "/a" * 300}, r"store: is a path of 600 bytes"),
        ({"store": "a" * 256}, r"store: has a part of more than 255 bytes"),
        ({"model": {"path": "m\0"}}, r"model\.path: is no path"),
        (
            {"evaluation": {"benchmarks": ["bbh", "musr", "bbh"]}},
            r"evaluation\.benchmarks: bbh more than once",
        ),
        ({"evaluation": {"limit": "10"}}, r"evaluation\.limit: .*write 10 without quotes"),
        *(
            (
                {"tracking": {"registered_model": name}},
                r"tracking\.registered_model: MLflow takes no name with",
            )
            for name in ("a/b", "a:b", "..", "a'b", "a\nb")
        ),
        (
            {"tracking": {"registered_model": "x" * 201}},
            r"registered_model: is longer than 200 characters",
        ),
        *(
            ({"tracking": {"uri": uri}}, rf"tracking\.uri: {message}")
            for uri, message in (
                ("./mlruns", "a path is a file store"),
                ("file:///x", "a path is a file store"),
                ("C:\\mlruns", "a path is a file"),
                ("ftp://host", "unknown scheme; known: http"),
                ("http://", "names no host"),
                ("http:/host", "names no host"),
                ("http://host:port", "host or port cannot be read"),
                ("http://host:99999", "host or port cannot be read"),
                ("http://a b", "names no host"),
                ("sqlite:///", "names no file"),
                ("sqlite://:memory:", "names no file"),
                ("sqlite:///:memory:", "names no file"),
                ("sqlite:mlflow.db", "names no file"),
                ("postgresql://me:pw@host/db", "carries a password"),
                ("mysql://host/db?password=x", "carries a password"),
            )
        ),
        ({"name": "objects"}, r"name: the store uses this name itself: choose another"),
        ({"name": "a/b"}, r"name: String should match pattern"),
        (
            {"verification": {"kind": "sql"}},
            r"verification: databases is missing, and kind is sql: set verification.dat",
        ),
        ({"verification": {"kind": "command"}}, r"verification: command is missing, and kind is command"),
        (
            {"verification": {"kind": "math", "schema_path": "s.json"}},
            r"verification: schema_path is set to 's.json', and kind is math: leave schema_path out, or set "
            r"verification\.kind: json_schema$",
        ),
        (
            {"verification": {"kind": "answer"}},
            r"verification: kind is answer, and data.answer_pattern is missing: set",
        ),
        ({"verification": {"timeout": 0}}, r"verification.timeout: Input should be greater than 0 \(got 0\)"),
        (
            {"verification": {"kind": "command", "command": []}},
            r"verification.command: List should have at least 1 item",
        ),
        ({"generation": {"samples": 65}}, r"generation.samples: Input should be less than or equal to 64 \(got 65\)"),
        (
            {"generation": {"samples": 2}},
            r"verification: kind is none, and generation.samples needs a verifier: set verification.kind, or leave "
            r"generation.samples out$",
        ),
        ({"data": {"path": "d", "prompts_path": "p"}}, r"kind is none, and data.prompts_path needs a verifier"),
        ({"data": {"path": "d", "reference_column": "r"}}, r"kind is none, and data.reference_column needs a verifier"),
        (
            {"objective": {"name": "rft"}},
            r"objective: name is rft, and verification.kind is none: set verification.kind, or change the objective$",
        ),
        ({"objective": {"verified": True}}, r"objective: verified is true, and verification.kind is none: set"),
        *(
            (
                {**MATH, "objective": {"name": name, "verified": True}},
                rf"objective: verified is true, and {name} does not learn from verdicts: leave objective.verified out, "
                r"or choose one of iris, spin, space, spif$",
            )
            for name in ("sft", "tspin", "hinge")
        ),
        (
            {**MATH, "generation": {"samples": 1}},
            r"^experiment: generation.samples is 1, and iris learns from a wrong response only where the prompt has a "
            r"right one, too: raise it \(left out: 4\), or set objective.verified: false$",
        ),
        (
            {**MATH, "generation": {"temperature": 0}},
            r"^experiment: generation.temperature is 0, and then all 4 responses to a prompt are equal: raise it",
        ),
        (
            {**MATH, "data": {"path": "d", "prompts_path": "p"}},
            r"^experiment: verification: kind is math, which compares with a reference, and the prompts in "
            r"data.prompts_path have no annotated response: set data.reference_column, or leave data.prompts_path out$",
        ),
        (
            {"verification": {"timeout": 1e10}},
            r"verification.timeout: Input should be less than or equal to 86400 \(got 10000000000.0\)",
        ),
        ({"verification": {"memory_gb": 1e30}}, r"verification.memory_gb: Input should be less than or equal to 10000"),
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


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("tracking", "registered_model", "My model, v2 (Ä).x"),
        ("tracking", "uri", "postgresql+psycopg2://me@host:5432/db"),
        ("tracking", "uri", "sqlite:////data/mlflow.db"),
        ("tracking", "uri", "sqlite:///mlflow.db"),
        ("tracking", "uri", "http://[::1]:5000/mlflow"),
        ("tracking", "uri", "databricks://profile"),
        ("data", "answer_pattern", "#### (.*)"),
        ("model", "path", "models/a?b %41#é"),
        ("data", "answer_pattern", "(?m)^(?:Answer|Result): (?P<answer>.+)$"),
    ],
)
def test_what_is_well_formed_is_kept(part, field, value):
    content = {**BASE, part: {**BASE.get(part, {}), field: value}}
    assert getattr(getattr(parse_experiment(content), part), field) == value


def test_values_in_errors_are_short():
    with pytest.raises(ConfigError) as caught:
        parse_experiment({**BASE, "training": {"epochs": ["x" * 1000] * 1000}})
    assert len(str(caught.value)) < 1200


def test_every_seed_and_iteration_samples_with_a_seed_of_its_own():
    seeds = [0, 1, 2, 2**32 - 2, 2**32 - 1]
    used = {seed * SEED_STRIDE + t for seed in seeds for t in range(100)}
    assert len(used) == 100 * len(seeds)
    with pytest.raises(ConfigError, match="iterations: Input should be less than or equal to 100"):
        parse_experiment({**BASE, "iterations": 101})


@pytest.mark.parametrize(
    ("kind", "objective", "verified"),
    [
        ("none", {}, None),
        ("none", {"verified": False}, None),
        ("math", {}, True),
        ("math", {"name": "spif"}, True),
        ("math", {"verified": False}, False),
        ("math", {"name": "sft"}, False),
        ("math", {"name": "rft"}, False),
    ],
)
def test_an_objective_learns_from_verdicts_where_it_can(kind, objective, verified):
    experiment = parse_experiment({**BASE, "verification": {"kind": kind}, "objective": objective})
    assert experiment.objective.verified is verified
    assert parse_experiment(yaml12.read(recipe_yaml(experiment)).value) == experiment


@pytest.mark.parametrize(
    ("content", "samples", "written"),
    [
        ({}, None, None),
        ({"generation": {"samples": 1}}, None, None),
        (MATH, 4, 4),
        ({**MATH, "objective": {"name": "rft"}}, 4, 4),
        ({**MATH, "objective": {"name": "rft"}, "generation": {"samples": 1, "temperature": 0}}, 1, 1),
        ({**MATH, "generation": {"samples": 2}}, 2, 2),
        ({**MATH, "objective": {"verified": False}}, None, None),
        ({**MATH, "objective": {"name": "sft"}, "generation": {"temperature": 0}}, None, None),
        ({**MATH, "objective": {"name": "sft"}, "generation": {"samples": 8}}, 8, 8),
    ],
)
def test_samples_are_four_where_verdicts_are_learned_from(content, samples, written):
    """And there alone in what is recorded. Another objective takes what the recipe says, or its own default."""
    experiment = parse_experiment({**BASE, **content})
    assert experiment.generation.samples == samples
    recorded = yaml12.read(recipe_yaml(experiment)).value
    assert recorded["generation"].get("samples") == written
    assert parse_experiment(recorded) == experiment
    other = {**experiment.model_dump(), "objective": {"name": "rft"}, **MATH}
    if experiment.generation.temperature > 0:
        assert parse_experiment(other).generation.samples == (samples or 4)


@pytest.mark.parametrize(
    ("content", "orders"),
    [
        ({}, ("adaptive", 2.0, 1.0)),
        (MATH, ("constant", 1.0, 1.0)),
        ({**MATH, "schedule": {"allow_rising": True}}, ("constant", 1.0, 1.0)),
        ({**MATH, "schedule": {"max_order": 3.0}}, ("adaptive", 3.0, 1.0)),
        ({**MATH, "schedule": {"kind": "adaptive"}}, ("adaptive", 2.0, 1.0)),
        ({**MATH, "objective": {"verified": False}}, ("adaptive", 2.0, 1.0)),
        ({**MATH, "objective": {"name": "rft"}}, ("adaptive", 2.0, 1.0)),
    ],
)
def test_the_order_is_1_where_verdicts_are_learned_from_and_none_is_set(content, orders):
    schedule = parse_experiment({**BASE, **content}).schedule
    assert (schedule.kind, schedule.max_order, schedule.min_order) == orders


@pytest.mark.parametrize(
    ("content", "likelihood"),
    [
        ({}, 1.0),
        (MATH, 0.0),
        ({**MATH, "objective": {"likelihood_weight": 0.5}}, 0.5),
        ({**MATH, "objective": {"verified": False}}, 1.0),
        ({**MATH, "schedule": {"kind": "adaptive"}}, 1.0),  # other orders let the weight of annotated responses fade
        ({**MATH, "schedule": {"kind": "constant", "max_order": 1, "min_order": 1}}, 0.0),
        ({**MATH, "schedule": {"kind": "constant", "max_order": 2}}, 1.0),
    ],
)
def test_annotated_responses_weigh_1_at_order_1_where_verdicts_are_learned_from(content, likelihood):
    experiment = parse_experiment({**BASE, **content})
    assert experiment.objective.likelihood_weight == likelihood
    assert parse_experiment(yaml12.read(recipe_yaml(experiment)).value) == experiment


def test_forms_fill_in_no_order():
    """A default in the schema would come back as if it had been set."""
    properties = SchedulePart.model_json_schema()["properties"]
    assert {name for name, field in properties.items() if "default" not in field} == {"kind", "max_order", "min_order"}


def test_right_responses_that_are_the_annotated_one_are_not_left_out():
    content = {**BASE, **MATH, "data": {**BASE["data"], "synthetic": {"equal": "mask"}}}
    message = "data.synthetic.equal is mask, and iris learns from verdicts, where a response that is the annotated one"
    with pytest.raises(ConfigError, match=message):
        parse_experiment(content)
    assert parse_experiment({**content, "objective": {"name": "sft"}}).data.synthetic.equal == "mask"


def test_a_weight_that_does_not_count_is_in_no_key():
    """A search over ρ trains a baseline once."""

    def keyed(**objective):
        return parse_experiment({**BASE, **MATH, "objective": objective}).objective.model_dump()

    for baseline in ({"name": "sft"}, {"name": "tspin"}, {"name": "hinge"}, {"verified": False}):
        assert keyed(**baseline, verified_weight=9.0) == keyed(**baseline)
        assert keyed(**baseline)["verified"] is False
    for name in ("iris", "spin", "space", "spif", "rft"):
        assert keyed(name=name, verified_weight=9.0)["verified_weight"] == 9.0


def test_without_a_verifier_a_recipe_is_what_it_was():
    """Keys of stages and MLflow's record of a recipe hold no setting of verification where there is none."""
    plain = recipe_yaml(parse_experiment(BASE))
    assert not [word for word in ("verif", "samples", "prompts_path", "reference") if word in plain]
    judged = recipe_yaml(parse_experiment({**BASE, "verification": {"kind": "math"}, "generation": {"samples": 2}}))
    for setting in ("samples: 2", "kind: math", "timeout: 10.0", "verified: true", "verified_weight: 3.0"):
        assert setting in judged


def test_every_field_has_a_description():
    def walk(schema):
        for name, field in schema.get("properties", {}).items():
            assert "description" in field, name
        for part in schema.get("$defs", {}).values():
            walk(part)

    walk(Experiment.model_json_schema())
