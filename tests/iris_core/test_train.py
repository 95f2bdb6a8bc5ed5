"""The training stage on a tiny real model: it learns, and resuming, packing and micro-batches change nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from iris_core import train as train_module
from iris_core.common.errors import TrainingError
from iris_core.config import Experiment, SyntheticPart, parse_experiment
from iris_core.config.objective import OBJECTIVE_NAMES
from iris_core.data.packing import Group
from iris_core.generate import generate
from iris_core.pipeline import plan
from iris_core.prepare import prepare
from iris_core.store import Manifest, run_stage
from iris_core.train import train
from iris_core.training.opponent import measured_pairs
from iris_core.training.trainer import SelfPlayTrainer

pytestmark = pytest.mark.integration


def experiment(tiny_model: Path, pairs_file: Path, **training: object) -> Experiment:
    settings = {
        "learning_rate": 5e-3,
        "batch_size": 8,
        "epochs": 2,
        "tokens_per_batch": 256,
        "checkpoint_every": 2,
    }
    return parse_experiment(
        {
            "name": "test",
            "model": {"path": str(tiny_model), "dtype": "float32"},
            "data": {"path": str(pairs_file), "heldout": 4},
            "generation": {"backend": "transformers", "max_new_tokens": 8},
            "objective": {"beta": 0.5, "normalizer": training.pop("normalizer", "unit")},
            "training": {**settings, **training},
        }
    )


@pytest.fixture(scope="module")
def inputs(tiny_model, pairs_file, tmp_path_factory):
    """The stages before training, run once."""
    folder = tmp_path_factory.mktemp("inputs")
    base = experiment(tiny_model, pairs_file)
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(base), folder / "prepare", prepare))
    state = prepared.start(base)
    generated = run_stage(plan.generate_spec(base, prepared, state), folder / "generate", generate)
    return prepared, state, generated


def run(inputs, config: Experiment, folder: Path) -> Manifest:
    prepared, state, generated = inputs
    return run_stage(plan.train_spec(config, prepared, state, generated), folder, train)


def run_killed_at(step: int, inputs, config: Experiment, folder: Path, monkeypatch) -> None:
    """A run that ends before its step number `step`."""
    take = SelfPlayTrainer.training_step

    def dies(self, *arguments, **options):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return take(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SelfPlayTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, config, folder)


def history(manifest: Manifest) -> list[dict]:
    return [json.loads(line) for line in manifest.artifact("history").path.read_text().splitlines()]


COMPARED = (
    "loss",
    "reward/margin",
    "logprob/annotated",
    "logprob/synthetic",
    "grad_norm",
    "ess/annotated",
)


def compared(manifest: Manifest) -> list[list[float]]:
    return [[row[name] for name in COMPARED] for row in history(manifest)]


@pytest.fixture(scope="module")
def whole(inputs, tiny_model, pairs_file, tmp_path_factory):
    """An uninterrupted run."""
    return run(inputs, experiment(tiny_model, pairs_file), tmp_path_factory.mktemp("whole") / "train")


def test_learns_to_tell_annotated_from_synthetic(whole):
    rows = history(whole)
    assert len(rows) == 6  # 20 pairs in batches of 8, two epochs
    assert rows[0]["loss"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["ess/annotated"] == pytest.approx(1, abs=1e-4)
    assert rows[-1]["reward/margin"] > 0.1
    assert rows[-1]["reward/accuracy"] > 0.8
    heldout = whole.metrics["heldout"]
    assert heldout["annotated_logprob_per_token"]["value"] > heldout["opponent_annotated_logprob_per_token"]["value"]
    gap, movement = whole.metrics["gap"], whole.metrics["movement"]
    assert gap["value"] > 0
    assert 1 <= gap["ess"] <= gap["pairs"] == 4
    assert 0.5 * movement["heldout_margin"]["value"] == pytest.approx(heldout["reward_margin"])
    assert movement["training_margin"]["low"] > 0
    above_what_four_can_show, few = whole.metrics["warnings"]
    assert "is above ln(4) = 1.39" in above_what_four_can_show
    assert few.startswith("4 held-out pairs: intervals of fewer than 16 may be too short")
    assert not (whole.folder / "work").exists()
    assert {Path(name).suffix for name in whole.files} <= {
        ".safetensors",
        ".json",
        ".jsonl",
        ".parquet",
    }


def test_a_killed_run_goes_on_with_the_same_losses(inputs, whole, tiny_model, pairs_file, tmp_path, monkeypatch):
    config = experiment(tiny_model, pairs_file)
    run_killed_at(5, inputs, config, tmp_path / "train", monkeypatch)
    half_written = tmp_path / "train" / "work" / "checkpoint-5"
    shutil.copytree(tmp_path / "train" / "work" / "checkpoint-4", half_written)
    (half_written / "normalizer.json").unlink()
    resumed = run(inputs, config, tmp_path / "train")
    assert compared(resumed) == compared(whole)
    assert resumed.outputs["adapter"].digest == whole.outputs["adapter"].digest


@pytest.mark.parametrize("name", [name for name in OBJECTIVE_NAMES if name != "rft"])  # which needs verdicts
def test_every_objective_raises_the_annotated_responses(inputs, tiny_model, pairs_file, tmp_path, name):
    """The recipes differ in one line, `objective.name`; T-SPIN also gets the initial model's responses."""
    prepared, state, generated = inputs
    config = experiment(tiny_model, pairs_file, learning_rate=1e-3)
    objective = config.objective.model_copy(update={"name": name})
    config = config.model_copy(update={"objective": objective})
    later = state.model_copy(update={"first": generated.artifact("responses")})
    spec = plan.train_spec(config, prepared, later, generated)
    assert (spec.initial_synthetic is not None) == (name == "tspin")
    manifest = run_stage(spec, tmp_path / "train", train)
    rows, held = history(manifest), manifest.metrics["heldout"]
    assert held["annotated_logprob_gain_per_token"]["value"] > 0
    assert rows[-1]["logprob/annotated"] > rows[0]["logprob/annotated"]
    if name == "sft":
        assert "reward/margin" not in rows[0]
        assert rows[0]["loss"] == pytest.approx(-rows[0]["logprob/annotated"], rel=1e-5)
        assert "ess/synthetic" not in rows[0]
        assert manifest.metrics["train"]["ess_synthetic"] is None
    else:
        assert rows[-1]["reward/margin"] > rows[0]["reward/margin"]


@pytest.mark.parametrize("normalizer", ["unit", "batch", "running", "anchored"])
def test_micro_batches_do_not_change_the_run(inputs, tiny_model, pairs_file, tmp_path, normalizer):
    gentle = {
        "normalizer": normalizer,
        "learning_rate": 5e-4,
        "epochs": 1,
    }  # rounding is not amplified much
    one_row = run(inputs, experiment(tiny_model, pairs_file, tokens_per_batch=4096, **gentle), tmp_path / "a")
    many = run(inputs, experiment(tiny_model, pairs_file, tokens_per_batch=16, **gentle), tmp_path / "b")
    for one, other in zip(compared(one_row), compared(many), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)


def test_weight_decay_is_in_every_step_of_a_resumed_run(inputs, whole, tiny_model, pairs_file, tmp_path, monkeypatch):
    config = experiment(tiny_model, pairs_file, weight_decay=10.0)
    decayed = run(inputs, config, tmp_path / "whole")
    run_killed_at(3, inputs, config, tmp_path / "train", monkeypatch)
    resumed = run(inputs, config, tmp_path / "train")
    assert compared(resumed) == compared(decayed)
    assert compared(decayed)[0] == compared(whole)[0]  # the first batch has seen no step
    assert compared(decayed)[1] != compared(whole)[1]


def test_a_run_of_one_step_trains(inputs, tiny_model, pairs_file, tmp_path):
    one = {"epochs": 1, "batch_size": 64, "warmup_ratio": 0.9}
    manifest = run(inputs, experiment(tiny_model, pairs_file, **one), tmp_path / "train")
    (row,) = history(manifest)
    assert row["learning_rate"] == 5e-3
    assert manifest.metrics["heldout"]["annotated_logprob_gain_per_token"]["value"] > 0.01


def test_the_comparison_sees_8_tokens_and_the_likelihood_all(inputs, whole, tiny_model, pairs_file, tmp_path):
    """Annotated responses are longer than the 8 tokens of generation; margins and gap come from the cut ones alone."""
    table = pq.read_table(whole.artifact("heldout").path).to_pandas()
    assert (table["annotated_tokens"] > 8).all()
    assert (table["annotated_cut_tokens"] == 8).all()
    assert (table["synthetic_tokens"] <= 8).all()
    ratios = {
        side: table[f"{side}_policy"] - table[f"{side}_opponent"]
        for side in ("annotated", "annotated_cut", "synthetic")
    }
    held, beta = whole.metrics["heldout"], 0.5
    margin = beta * (ratios["annotated_cut"] - ratios["synthetic"]).mean()
    assert held["reward_margin"] == pytest.approx(margin)
    per_token = table["annotated_policy"].sum() / table["annotated_tokens"].sum()
    assert held["annotated_logprob_per_token"]["value"] == pytest.approx(per_token)
    assert not np.allclose(ratios["annotated"], ratios["annotated_cut"])


def test_the_loss_of_the_comparison_is_a_function_of_the_cut_rewards(inputs, tiny_model, pairs_file, tmp_path):
    """SPIN on one pair a step: log(1 + e^{−m}), m the margin of both responses' first 8 tokens."""
    base = experiment(tiny_model, pairs_file, batch_size=1, epochs=1)
    objective = base.objective.model_copy(update={"name": "spin"})
    manifest = run(inputs, base.model_copy(update={"objective": objective}), tmp_path / "train")
    rows = history(manifest)
    assert max(abs(row["reward/margin"]) for row in rows) > 1
    for row in rows:
        assert row["loss"] == pytest.approx(np.logaddexp(0, -row["reward/margin"]), abs=1e-5)


def test_masked_pairs_train_on_their_annotated_responses(inputs, tiny_model, pairs_file, tmp_path):
    """All synthetic responses are cut at 8 tokens or end; with all masked, nothing of them is in the metrics."""
    base = experiment(tiny_model, pairs_file)
    kinds = {"truncated": "mask", "empty": "mask", "equal": "mask"}
    data = base.data.model_copy(update={"synthetic": SyntheticPart(**kinds)})
    manifest = run(inputs, base.model_copy(update={"data": data}), tmp_path / "train")
    counts, rows = manifest.metrics["train"]["synthetic"], history(manifest)
    assert (counts["masked"], counts["truncated"]) == (20, 18)
    assert "reward/margin" not in rows[0]
    assert manifest.metrics["movement"]["training_margin"] is None
    assert "ess/synthetic" not in rows[-1]
    assert rows[-1]["logprob/annotated"] > rows[0]["logprob/annotated"]


def test_masked_pairs_have_no_margin():
    whole, masked = Group([1], ([2, 3], [4])), Group([1], ([2, 3], []))
    groups = {"train": [masked, whole, masked, whole, whole], "heldout": [whole, whole]}
    assert measured_pairs(groups) == {"train": [1, 3], "heldout": [0, 1]}


def test_one_pair_is_enough_to_train_on(tiny_model, tmp_path):
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i}"} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = experiment(tiny_model, tmp_path / "pairs.jsonl")
    data = config.data.model_copy(update={"heldout": 2})
    config = config.model_copy(update={"data": data})
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(config), tmp_path / "prepare", prepare))
    state = prepared.start(config)
    generated = run_stage(plan.generate_spec(config, prepared, state), tmp_path / "generate", generate)
    manifest = run((prepared, state, generated), config, tmp_path / "train")
    assert manifest.metrics["movement"]["training_margin"] is None


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_measured_is_what_the_next_iteration_starts_from(inputs, tiny_model, pairs_file, tmp_path, method):
    """Weights are saved in bf16: the next opponent's log-probs of held-out pairs are those of the measured policy."""
    prepared, state, generated = inputs
    config = experiment(tiny_model, pairs_file, method=method)
    prepared = prepared.model_copy(update={"dtype": "bfloat16"})
    spec = plan.train_spec(config, prepared, state, generated)
    first = run_stage(spec, tmp_path / "0", train)
    later = state.model_copy(update={"iteration": 1, "policy": plan.trained_policy(state.policy, first)})
    second = run_stage(plan.train_spec(config, prepared, later, generated), tmp_path / "1", train)
    measured, opponent = (pq.read_table(manifest.artifact("heldout").path).to_pandas() for manifest in (first, second))
    for side in ("annotated", "annotated_cut", "synthetic"):
        assert (measured[f"{side}_policy"] == opponent[f"{side}_opponent"]).all()


def test_full_fine_tuning_saves_a_whole_model(inputs, tiny_model, pairs_file, tmp_path):
    manifest = run(
        inputs,
        experiment(tiny_model, pairs_file, method="full", optimizer="adamw"),
        tmp_path / "train",
    )
    folder = manifest.artifact("model").path
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {
        p.name for p in folder.iterdir()
    }
    assert history(manifest)[-1]["reward/margin"] > 0
    policy = plan.trained_policy(inputs[1].policy, manifest)
    assert policy.adapter is None
    assert policy.model.digest != inputs[1].policy.model.digest


def test_gradient_checkpointing_changes_nothing(inputs, whole, tiny_model, pairs_file, tmp_path):
    manifest = run(inputs, experiment(tiny_model, pairs_file, gradient_checkpointing=True), tmp_path / "train")
    for one, other in zip(compared(manifest), compared(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_wrong_reference_stops_at_step_0(inputs, tiny_model, pairs_file, tmp_path, monkeypatch):
    right = train_module.opponent_logprobs

    def wrong(*arguments):
        return {split: values - 1.0 for split, values in right(*arguments).items()}

    monkeypatch.setattr(train_module, "opponent_logprobs", wrong)
    with pytest.raises(TrainingError, match="at step 0 the policy differs from its opponent"):
        run(inputs, experiment(tiny_model, pairs_file), tmp_path / "train")


def test_cublas_is_set_before_the_opponent_is_scored(inputs, tiny_model, pairs_file, tmp_path, monkeypatch):
    """It takes its workspace once; a resumed run, which does not score, has the same."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")  # and is so again afterwards
    found = []

    def dies(*arguments):
        found.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "opponent_logprobs", dies)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, experiment(tiny_model, pairs_file), tmp_path / "train")
    assert found == [":4096:8"]


@pytest.mark.parametrize("training", [{}, {"gradient_checkpointing": True}])
def test_separate_rows_take_the_same_steps(inputs, whole, tiny_model, pairs_file, tmp_path, training):
    prepared, state, generated = inputs
    separate = prepared.model_copy(update={"packing": "separate"})
    config = experiment(tiny_model, pairs_file, **training)
    spec = plan.train_spec(config, separate, state, generated)
    manifest = run_stage(spec, tmp_path / "train", train)
    for one, other in zip(compared(manifest), compared(whole), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)


NOISE = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}


@pytest.fixture(scope="module")
def noisy_model(tiny_model, tmp_path_factory):
    """A GPT-2 with dropout everywhere."""
    folder = tmp_path_factory.mktemp("noisy-model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 384, "initializer_range": 0.1}
    GPT2LMHeadModel(GPT2Config(**sizes, **NOISE, eos_token_id=2)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_and_opponent_are_scored_in_one_mode(noisy_model, pairs_file, tmp_path, method, checkpointing):
    """In two iterations, rewards are 0 at the first step of each, and the second starts where the first ended."""
    settings = {"method": method, "gradient_checkpointing": checkpointing, "epochs": 1}
    config = experiment(noisy_model, pairs_file, **settings)
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(config), tmp_path / "prepare", prepare))
    state = prepared.start(config)
    generated = run_stage(plan.generate_spec(config, prepared, state), tmp_path / "g", generate)
    for iteration in range(2):
        folder = tmp_path / str(iteration)
        manifest = run_stage(plan.train_spec(config, prepared, state, generated), folder, train)
        first = history(manifest)[0]
        assert first["reward/margin"] == pytest.approx(0, abs=1e-5)
        assert first["loss"] == pytest.approx(0, abs=1e-5)
        state = state.model_copy(update={"iteration": 1, "policy": plan.trained_policy(state.policy, manifest)})
    assert abs(history(manifest)[-1]["reward/margin"]) > 1e-3
    if method == "full":
        saved = json.loads((manifest.artifact("model").path / "config.json").read_text())
        assert {name: saved[name] for name in NOISE} == NOISE


def test_a_loss_that_is_not_a_number_stops(inputs, tiny_model, pairs_file, tmp_path, monkeypatch):
    right = SelfPlayTrainer._logprobs

    def broken(self, model, row):
        values = right(self, model, row)
        return values * torch.nan if self.state.global_step == 2 else values

    monkeypatch.setattr(SelfPlayTrainer, "_logprobs", broken)
    with pytest.raises(TrainingError, match="the loss is nan at step 2"):
        run(inputs, experiment(tiny_model, pairs_file), tmp_path / "train")


def test_the_next_iteration_goes_on_with_the_adapter(inputs, whole, tiny_model, pairs_file, tmp_path):
    """p_{t+1} is both start and opponent: rewards are 0 at its first step, though the adapter is not."""
    prepared, state, generated = inputs
    config = experiment(tiny_model, pairs_file)
    later = state.model_copy(update={"iteration": 1, "policy": plan.trained_policy(state.policy, whole)})
    manifest = run_stage(plan.train_spec(config, prepared, later, generated), tmp_path / "train", train)
    rows = history(manifest)
    assert rows[0]["loss"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["logprob/annotated"] > history(whole)[0]["logprob/annotated"]


def test_the_initial_opponent_is_recorded_and_allowed_to_differ(inputs, whole, tiny_model, pairs_file, tmp_path):
    prepared, state, generated = inputs
    base = experiment(tiny_model, pairs_file)
    config = base.model_copy(update={"objective": base.objective.model_copy(update={"opponent": "initial"})})
    later = state.model_copy(update={"iteration": 1, "policy": plan.trained_policy(state.policy, whole)})
    spec = plan.train_spec(config, prepared, later, generated)
    assert spec.opponent == prepared.initial != spec.policy
    assert history(run_stage(spec, tmp_path / "train", train))[0]["reward/margin"] > 0.1
