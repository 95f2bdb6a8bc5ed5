"""The members of a comparison: how they differ, what they share, and which lists and recipes make none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iris_core.common.errors import ConfigError, StoreError
from iris_core.config import Experiment, parse_experiment
from iris_core.config.objective import COMPARED, OBJECTIVE_NAMES
from iris_core.pipeline.members import compare_spec, compared_by_default, member, members, with_sft
from iris_core.pipeline.plan import Prepared, evaluate_spec, generate_spec, prepare_spec, recipe_yaml
from iris_core.pipeline.specs import GenerateSpec
from iris_core.store import Artifact, Policy
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.unit

JUDGED = {"verification": {"kind": "math"}}
INITIAL = Policy(model=Artifact(path=Path("model"), digest="0"))
PAIRS = Artifact(path=Path("pairs"), digest="1")
PREPARED = Prepared(initial=INITIAL, pairs=PAIRS, dtype="float32", stop_token_ids=[2], packing="packed")


def experiment(**settings: Any) -> Experiment:
    return parse_experiment({"name": "both", "model": {"path": "m"}, "data": {"path": "d"}, **settings})


def sampled(loop: Experiment) -> GenerateSpec:
    return generate_spec(loop, PREPARED, PREPARED.start(loop))


def test_members_differ_in_objective_and_seed_and_keep_published_scales() -> None:
    base = experiment(objective={"beta": 0.3}, training={"epochs": 5})
    own, other = members(base, ["iris", "tspin"], [2])
    assert (own.name, own.seed, own.objective.beta) == ("both-iris-seed-2", 2, 0.3)
    assert (other.name, other.seed, other.objective.beta) == ("both-tspin-seed-2", 2, 1.0)
    assert other.training == base.training
    assert other.store == base.store


def test_the_comparison_takes_all_but_the_variant_of_another() -> None:
    assert compared_by_default(experiment()) == COMPARED
    assert set(OBJECTIVE_NAMES) - set(COMPARED) == {"hinge", "rft"}
    judged = experiment(**JUDGED)
    assert compared_by_default(judged) == [*COMPARED, "rft", "verified"]
    names = [loop.name for loop in members(judged, None, [0, 1])]
    assert names == [f"both-{name}-seed-{seed}" for seed in (0, 1) for name in compared_by_default(judged)]


def test_members_learn_from_verdicts_by_their_name_alone() -> None:
    for own, beta in (({"beta": 0.3}, 0.3), ({}, 1.0), ({"name": "spin", "verified": False}, 1.0)):
        base = experiment(objective=own, **JUDGED)
        found = {name: member(base, name, 0).objective for name in compared_by_default(base)}
        assert {name for name, objective in found.items() if objective.verified} == {"verified"}
        assert {name: objective.name for name, objective in found.items() if objective.name != name} == {
            "verified": "iris"
        }
        assert found["verified"].beta == beta
        assert found["iris"].beta == 0.1  # the default of another way to train
    with pytest.raises(ConfigError, match=r"comparison: objective: name is rft, and verification.kind is none"):
        member(experiment(), "rft", 0)
    assert member(experiment(), "iris", 0).objective == experiment().objective


@pytest.mark.parametrize("samples", [{}, {"generation": {"samples": 3}}])
@pytest.mark.parametrize("own", [{}, {"name": "spin", "verified": False}, {"name": "sft"}])
def test_members_sample_as_a_recipe_with_their_objective(own: dict[str, Any], samples: dict[str, Any]) -> None:
    """Whatever the objective of the compared recipe is; and those that learn from verdicts share their samples."""
    base = experiment(objective=own, **JUDGED, **samples)
    for name in compared_by_default(base):
        objective = {"name": "iris"} if name == "verified" else {"name": name, "verified": False}
        alone = experiment(objective=objective, **JUDGED, **samples)
        assert sampled(member(base, name, 0)).generation == sampled(alone).generation
    assert sampled(member(base, "verified", 0)).key() == sampled(member(base, "rft", 0)).key()


def test_members_have_the_orders_of_their_objective() -> None:
    """Those of the recipe where it sets some."""
    for own in ({}, {"verified": False}, {"name": "sft"}):
        base = experiment(objective=own, **JUDGED)
        kinds = {name: member(base, name, 0).schedule.kind for name in ("iris", "spin", "verified")}
        assert kinds == {"iris": "adaptive", "spin": "adaptive", "verified": "constant"}
    rising = experiment(schedule={"allow_rising": True}, objective={"verified": False}, **JUDGED)
    assert {name: member(rising, name, 0).schedule.kind for name in ("iris", "verified")} == {
        "iris": "adaptive",
        "verified": "constant",
    }
    assert member(rising, "verified", 0).schedule.allow_rising
    linear = experiment(schedule={"kind": "linear"}, **JUDGED)
    assert {loop.schedule.kind for loop in members(linear, None, [0])} == {"linear"}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"iris": 1.0, "spin": 1.0, "verified": 0.0}),
        ({"verified": False}, {"iris": 1.0, "spin": 1.0, "verified": 0.0}),
        ({"name": "sft"}, {"iris": 1.0, "spin": 1.0, "verified": 0.0}),
        ({"likelihood_weight": 0.5}, {"iris": 0.5, "spin": 0.5, "verified": 0.5}),
        ({"likelihood_weight": 0.5, "verified": False}, {"iris": 0.5, "spin": 0.5, "verified": 0.5}),
    ],
)
def test_members_have_the_likelihood_weight_of_their_objective(own: dict[str, Any], expected: dict[str, float]) -> None:
    """That of the recipe where it sets one; and ρ, whether or not its own objective uses it."""
    base = experiment(objective={"verified_weight": 7.0, **own}, **JUDGED)
    found = {name: member(base, name, 0).objective for name in ("iris", "spin", "verified")}
    assert {name: objective.likelihood_weight for name, objective in found.items()} == expected
    assert found["verified"].verified_weight == 7


def test_members_that_learn_from_verdicts_keep_equal_responses() -> None:
    data = {"path": "d", "synthetic": {"equal": "drop"}}
    base = parse_experiment(
        {"name": "both", "model": {"path": "m"}, "data": data, "objective": {"name": "sft"}, **JUDGED}
    )
    handled = {name: member(base, name, 0).data.synthetic.equal for name in ("sft", "iris", "rft", "verified")}
    assert handled == {"sft": "drop", "iris": "drop", "rft": "keep", "verified": "keep"}


def test_a_member_is_checked_as_a_recipe_is() -> None:
    with pytest.raises(ConfigError, match="comparison: seed: Input should be less than"):
        member(experiment(), "space", 2**32)


@pytest.mark.parametrize(
    ("objectives", "seeds", "message"),
    [
        (["spin", "iris", "spin"], [0], r"^comparison: objectives names spin more than once: name each once$"),
        (["spin"], [3, 0, 3, 0], r"^comparison: seeds names 3, 0 more than once: name each once$"),
        ([], [0], r"^comparison: objectives is an empty list: name at least one, or leave objectives out$"),
        (None, [], r"^comparison: seeds is an empty list: name at least one, or leave seeds out$"),
    ],
)
def test_copies_and_nothing_are_no_members(objectives: Any, seeds: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        members(experiment(), objectives, seeds)


def test_loops_that_may_end_early_are_not_compared() -> None:
    stopping = experiment(schedule={"stop_when_converged": True})
    with pytest.raises(ConfigError, match=r"^comparison: schedule.stop_when_converged is true.*: set it to false$"):
        members(stopping, ["iris"], [0])


def test_the_baseline_is_the_recipe_by_supervised_fine_tuning() -> None:
    base = experiment(
        seed=3, training={"epochs": 5}, objective={"beta": 0.3}, tracking={"registered_model": "prod"}, **JUDGED
    )
    own, sft = with_sft(base)
    assert (own.registered_model, sft.registered_model) == ("prod", "both-sft-seed-3")
    assert own == base
    assert (sft.name, sft.seed, sft.data.split_seed) == ("both-sft-seed-3", 3, 3)
    assert (sft.objective.name, sft.objective.learns_from_verdicts) == ("sft", False)
    assert (sft.training, sft.verification, sft.store) == (base.training, base.verification, base.store)


def test_no_baseline_for_the_baseline_or_a_loop_that_may_end_early() -> None:
    with pytest.raises(ConfigError, match=r"^comparison: objective.name is sft, .*: run it without --with-sft$"):
        with_sft(experiment(objective={"name": "sft"}))
    with pytest.raises(ConfigError, match=r"set it to false, or run the loop alone, with --no-with-sft$"):
        with_sft(experiment(schedule={"stop_when_converged": True}))


def test_a_name_that_has_no_room_for_its_loops_is_named() -> None:
    assert with_sft(experiment(name="a" * 189))[1].name == "a" * 189 + "-sft-seed-0"
    with pytest.raises(ConfigError, match=r"^comparison: name: .* longer than 200 characters: give the experiment a s"):
        with_sft(experiment(name="a" * 190))


def test_a_loop_that_has_other_settings_by_now_is_not_compared(tmp_path: Path) -> None:
    """Another run may take its name while the other loops of a comparison run."""
    small = SmallExperiment(tmp_path, [0.3])
    small.iterations()
    assert len(compare_spec(small.experiment, [small.experiment]).members) == 1
    changed = small.experiment.model_copy(update={"seed": 5})
    with pytest.raises(StoreError, match=r"/small has other settings than its loop, .*: give that run another `name`"):
        compare_spec(changed, [changed])


def test_what_a_loop_does_not_evaluate_is_not_compared(tmp_path: Path) -> None:
    """The flow `iris-evaluate` may have scored the initial model of one loop, and not of the others."""
    small = SmallExperiment(tmp_path, [0.3], evaluation={"benchmarks": ["gsm8k"], "initial": False})
    small.iterations()
    spec = evaluate_spec(small.experiment, small.prepared, small.prepared.initial, None)
    small.run(spec, "initial/evaluate", small.evaluate(0.2, 0.1))
    (found,) = compare_spec(small.experiment, [small.experiment]).members
    assert found.initial is None
    assert len(found.evaluate) == 1


def prepared_keys(seed: int, **data: Any) -> list[str]:
    """Keys of the stage `prepare`: of a recipe in the working directory, and of its members with the seeds 5 and 6."""
    base = experiment(seed=seed, model={"path": "model"}, data={"path": "pairs.jsonl", **data})
    loops = [base, *members(base, ["sft"], [5, 6])]
    return [prepare_spec(loop).model_copy(update={"versions": {}}).key() for loop in loops]


def test_members_share_the_split_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keys of recipes without `split_seed` are those of earlier versions, of which this is one."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/model.safetensors").write_bytes(b"weights")
    Path("pairs.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    before = "c1080243db074c39621f79fcaf80aa538fc12bd56ca153a05841cc0f27119238"
    assert prepared_keys(5) == [before] * 3
    assert prepared_keys(7, split_seed=5) == [before] * 3
    (other,) = set(prepared_keys(7))
    assert other != before
    assert "split_seed" not in recipe_yaml(experiment())
    assert member(experiment(seed=7), "sft", 5).data.split_seed == 7
