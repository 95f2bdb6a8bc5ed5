"""Training on several judged samples of a prompt, on a tiny real model: what it learns, and what changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iris_core.config import ObjectivePart
from iris_core.config.objective import VERIFIABLE
from iris_core.data.pairs import load_pairs, write_pairs
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Artifact, Manifest, run_stage
from iris_core.train import train
from iris_core.training.samples import load_trained
from iris_core.training.trainer import SelfPlayTrainer
from tests.iris_core.training.tiny_specs import SHARED, specs

pytestmark = pytest.mark.integration

COMPARED = ("loss", "grad_norm", "ess/annotated", "ess/synthetic", "reward/right", "reward/wrong", "verified/up")
OBJECTIVE = ObjectivePart(beta=0.5, verified_weight=30.0).resolved(judged=True)
ALL_TRAINED = {"method": "full", "learning_rate": 1e-3, "tokens_per_batch": 256}


@pytest.fixture(scope="module")
def make(tiny_model, pairs_file, tmp_path_factory):
    return specs(tmp_path_factory.mktemp("inputs"), tiny_model, pairs_file)


@pytest.fixture(scope="module")
def spec(make, tmp_path_factory) -> TrainSpec:
    """Three samples of each prompt, of which some are right; every third prompt has no annotation."""
    return without_annotation(make(objective=OBJECTIVE, **ALL_TRAINED), tmp_path_factory.mktemp("pairs"))


def without_annotation(spec: TrainSpec, folder: Path) -> TrainSpec:
    pairs = load_pairs(spec.pairs)
    trained = [pair for pair in pairs if pair.split == "train"]
    for pair in trained[::3]:
        object.__setattr__(pair, "response", "")
        object.__setattr__(pair, "response_ids", [])
    write_pairs(pairs, folder / "pairs.parquet")
    return spec.model_copy(update={"pairs": Artifact.of(folder / "pairs.parquet")})


@pytest.fixture(scope="module")
def whole(spec, tmp_path_factory) -> Manifest:
    """An uninterrupted run."""
    return run_stage(spec, tmp_path_factory.mktemp("whole") / "train", train)


def history(manifest: Manifest) -> list[dict[str, float]]:
    return [json.loads(line) for line in manifest.artifact("history").path.read_text().splitlines()]


def compared(manifest: Manifest) -> list[list[float]]:
    return [[row.get(name, 0.0) for name in COMPARED] for row in history(manifest)]


def with_verdicts(spec: TrainSpec, folder: Path, verdict: str) -> TrainSpec:
    """The same verdict on all samples."""
    rows = [{**row, "verdict": verdict} for row in pq.read_table(spec.verdicts[0].path).to_pylist()]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return spec.model_copy(update={"verdicts": [Artifact.of(folder)]})


def test_wrong_samples_count_by_a_token_in_their_midst(spec):
    """Which the other tests here rely on."""
    scored = [start for group in load_trained(spec).groups for start in group.scored_from]
    assert max(scored) >= SHARED


def test_right_samples_gain_on_wrong_ones(whole):
    rows = history(whole)
    assert rows[0]["loss"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["ess/synthetic"] == pytest.approx(1, abs=1e-3)  # of v, alike at the start; D is not in it
    assert 0 < rows[0]["verified/share_right"] < 1
    assert rows[0]["verified/up"] > 0
    assert rows[0]["reward/right"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["reward/right"] > rows[-1]["reward/wrong"] + 0.1
    assert rows[-1]["logprob/annotated"] > rows[0]["logprob/annotated"]
    steps = whole.metrics["train"]
    assert steps["up"] == pytest.approx(sum(row["verified/up"] for row in rows) / len(rows))
    assert not any("verification" in line for line in whole.metrics["warnings"])


def test_the_measurement_is_that_of_plain_self_play(whole):
    """Margins of trained pairs are those of annotated ones against one response, held-out pairs have three sums."""
    table = pq.read_table(whole.artifact("opponent_logprobs").path).to_pandas()
    assert (table["split"].value_counts()[["heldout", "compared"]] == 4).all()
    assert table[table["split"] == "heldout"][["annotated_cut", "annotated_rest", "synthetic"]].notna().all(axis=None)
    assert table[table["split"] == "train"].notna().all(axis=None)
    assert whole.metrics["gap"]["pairs"] == 4
    assert whole.metrics["movement"]["training_margin"]["value"] > 0


@pytest.mark.parametrize("name", VERIFIABLE)
def test_every_objective_learns_from_verdicts(spec, tmp_path, name):
    objective = OBJECTIVE.model_copy(update={"name": name})
    gentle = spec.model_copy(update={"objective": objective, "learning_rate": 1e-4})
    rows = history(run_stage(gentle, tmp_path / "train", train))
    assert rows[-1]["reward/right"] > rows[-1]["reward/wrong"]


def test_separate_rows_and_small_rows_take_the_same_steps(spec, whole, tmp_path):
    training = spec.training.model_copy(update={"tokens_per_batch": 16})
    for name, changes in (("separate", {"packing": "separate"}), ("small", {"training": training})):
        manifest = run_stage(spec.model_copy(update=changes), tmp_path / name, train)
        for one, other in zip(compared(manifest), compared(whole), strict=True):
            assert one == pytest.approx(other, rel=2e-3, abs=2e-4)


def test_a_killed_run_goes_on_with_the_same_losses(spec, whole, tmp_path, monkeypatch):
    take = SelfPlayTrainer.training_step

    def dies(self, *arguments, **options):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return take(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SelfPlayTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run_stage(spec, tmp_path / "train", train)
    resumed = run_stage(spec, tmp_path / "train", train)
    assert compared(resumed) == compared(whole)
    assert resumed.outputs["model"].digest == whole.outputs["model"].digest


def test_rft_without_right_samples_takes_the_steps_of_sft(make, tmp_path):
    """All pairs are annotated here, so that both have the same batches."""
    found = []
    for name in ("rft", "sft"):
        objective = ObjectivePart(name=name)
        spec = with_verdicts(make(objective=objective, **ALL_TRAINED), tmp_path / f"verdicts-{name}", "wrong")
        rows = history(run_stage(spec, tmp_path / name, train))
        found.append([[row[key] for key in ("loss", "grad_norm", "logprob/annotated")] for row in rows])
    assert found[0] == found[1]


def test_the_loss_of_rft_is_per_token_by_weight(spec, tmp_path):
    """−(Σ log p of annotated responses + Σ U·log p of samples) / (their tokens + Σ U·tokens), of one batch of all."""
    training = spec.training.model_copy(update={"batch_size": 64, "epochs": 1})
    rft = spec.model_copy(update={"objective": ObjectivePart(name="rft").resolved(judged=True), "training": training})
    manifest, trained = run_stage(rft, tmp_path / "train", train), load_trained(rft)
    table = pq.read_table(manifest.artifact("opponent_logprobs").path).to_pandas()
    logprobs = table[table["split"] == "train"].drop(columns="split").to_numpy()
    up = np.pad(trained.weights.up.numpy(), ((0, 0), (2, 0)), constant_values=1.0)
    lengths = np.array([group.sums for group in trained.groups])
    (row,) = history(manifest)
    assert row["verified/up"] > 0
    assert row["loss"] == pytest.approx(-(up * logprobs).sum() / (up * lengths).sum(), rel=1e-4)


def test_rft_raises_right_samples(spec, tmp_path):
    objective = ObjectivePart(name="rft").resolved(judged=True)
    rows = history(run_stage(spec.model_copy(update={"objective": objective}), tmp_path / "train", train))
    assert rows[-1]["reward/right"] > rows[0]["reward/right"] + 0.1
    assert {row["verified/down"] for row in rows} == {0}
    assert "reward/wrong" not in rows[0]


@pytest.mark.parametrize(
    ("name", "what"), [("iris", "annotated pairs alone were trained on"), ("spin", "nothing was learned")]
)
def test_undecided_samples_have_no_effect(spec, tmp_path, name, what):
    """Verdicts that decide nothing: annotated pairs are trained on alone, where an objective has a part for them."""
    objective = OBJECTIVE.model_copy(update={"name": name})
    undecided = with_verdicts(spec.model_copy(update={"objective": objective}), tmp_path / "verdicts", "undecided")
    manifest = run_stage(undecided, tmp_path / "train", train)
    rows = history(manifest)
    (line,) = [line for line in manifest.metrics["warnings"] if line.startswith("verification: no response had a")]
    assert what in line
    assert "ess/synthetic" not in rows[0]
    assert manifest.metrics["train"]["ess_synthetic"] is None
    assert manifest.metrics["train"]["share_right"] is None
    assert {row["verified/up"] for row in rows} == {row["verified/down"] for row in rows} == {0}
    assert "verified/share_right" not in rows[0]
    gain = manifest.metrics["heldout"]["annotated_logprob_gain_per_token"]["value"]
    assert (abs(gain) > 1e-3) == (name == "iris")
