"""The stage `register` against a real MLflow on SQLite."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from iris_core import tracking
from iris_core.common.errors import ServiceError, StoreError
from iris_core.pipeline.specs import RegisterSpec
from iris_core.register import register
from iris_core.store import Artifact, Manifest, read_manifest, run_stage
from iris_core.tracking import registry
from iris_core.tracking.client import Client
from tests.iris_core.damage import DAMAGES, damage
from tests.iris_core.small_experiment import STEPS, SmallExperiment
from tests.processes import PATIENCE_S


def client_of(small: SmallExperiment) -> MlflowClient:
    uri = small.experiment.tracking_uri
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """A SQLite database with MLflow's tables and nothing in them; making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def root(tmp_path, database) -> Path:
    (tmp_path / "store").mkdir()
    shutil.copy(database, tmp_path / "store" / "mlflow.db")
    return tmp_path


def do(small: SmallExperiment, spec: RegisterSpec):
    return run_stage(spec, small.store.folder(spec), register)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An initial model and three iterations, registered: the averages fall, exact match rises, then stays equal."""
    exact = [0.125, 0.25, 0.5, 0.5]
    small = SmallExperiment(tmp_path_factory.mktemp("finished"), [0.50, 0.40, 0.30], exact=exact)
    manifests = [do(small, spec) for spec in [small.initial(), *small.iterations()]]
    return small, manifests


def runs(small: SmallExperiment):
    client = client_of(small)
    experiment = client.get_experiment_by_name("small").experiment_id
    found = client.search_runs([experiment])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_one_parent_one_child_an_iteration(finished):
    small, manifests = finished
    found = runs(small)
    assert set(found) == {"small", "initial", "iteration-0", "iteration-1", "iteration-2"}
    parent = found.pop("small")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {run.info.status for run in found.values()} == {"FINISHED"} == {parent.info.status}
    assert manifests[0].metrics == {
        "run_id": found["initial"].info.run_id,
        "parent_run_id": parent.info.run_id,
        "version": 1,
        "champion": True,
        "warnings": [],
        "champion_note": "champion: the initial model, which iterations have to beat",
    }
    assert [manifest.metrics["version"] for manifest in manifests] == [1, 2, 3, 4]
    assert [manifest.metrics["champion"] for manifest in manifests] == [True, True, True, False]


def test_steps_of_training_keep_their_step_and_time(finished):
    small, _ = finished
    run = runs(small)["iteration-1"]
    history = client_of(small).get_metric_history(run.info.run_id, "reward/margin")
    assert [(m.step, m.timestamp) for m in history] == [
        (step, int((1_790_000_000 + 100 + step) * 1000)) for step in range(1, STEPS + 1)
    ]
    assert run.data.metrics["gap"] == pytest.approx(0.4)
    assert run.data.metrics["miniature/average"] == pytest.approx(0.4)
    assert "step" not in run.data.metrics
    assert "benchmark/average" not in run.data.metrics


def test_parent_has_a_point_an_iteration(finished):
    small, _ = finished
    client, parent = client_of(small), runs(small)["small"].info.run_id

    def series(name: str) -> list[tuple[int, float]]:
        return sorted((m.step, round(m.value, 3)) for m in client.get_metric_history(parent, name))

    assert series("gap") == [(0, 0.8), (1, 0.4), (2, 0.267)]
    assert series("order") == [(0, 2.0), (1, 1.5), (2, 1.0)]
    assert series("miniature/average") == [(-1, 0.2), (0, 0.5), (1, 0.4), (2, 0.3)]
    assert series("exact_match") == [(-1, 0.125), (0, 0.25), (1, 0.5), (2, 0.5)]
    assert series("miniature/gsm8k_stderr") == [(-1, 0.02), (0, 0.02), (1, 0.02), (2, 0.02)]


def test_inputs_params_and_artifacts(finished):
    small, _ = finished
    client, run = client_of(small), runs(small)["iteration-0"]
    trained = small.store.manifest("iteration-0/train")
    inputs = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    assert inputs["annotated"].dataset.digest == trained.spec["pairs"]["digest"][:36]
    assert inputs["synthetic"].dataset.digest == trained.spec["synthetic"][0]["digest"][:36]
    assert {tag.value for entry in inputs.values() for tag in entry.tags} == {"train"}
    assert run.data.params["training.learning_rate"] == "0.0001"
    assert run.data.params["order"] == "2.0"
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names == {
        "manifests",
        "scores",
        "recipe.yaml",
        "history.jsonl",
        "heldout.parquet",
        "measures.json",
    }
    scores = {item.path for item in client.list_artifacts(run.info.run_id, "scores")}
    assert scores == {"scores/gsm8k.json", "scores/mmlu.json"}


def test_versions_carry_lineage_and_the_adapter(finished):
    small, _ = finished
    client = client_of(small)
    initial, first, second, third = registry.versions(client, "small")
    assert [v.tags["parent_version"] for v in (first, second, third)] == ["1", "2", "3"]
    assert initial.tags["iteration"] == "initial"
    assert not {"parent_version", "adapter_digest"} & set(initial.tags)
    assert initial.tags["model_digest"] == small.prepared.initial.model.digest
    assert initial.description.startswith("The initial model, before self-play, miniature average")
    assert second.tags["adapter_digest"] == small.policy(1).adapter.digest
    assert second.tags["model_digest"] == small.prepared.initial.model.digest
    assert second.tags["label"] == "miniature"
    assert float(second.tags["average"]) == 0.4
    folder = client.get_model_version_download_uri("small", "3")
    assert {p.name for p in Path(folder).iterdir()} == {
        "MLmodel",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert second.run_id == runs(small)["iteration-1"].info.run_id
    model = client.get_logged_model(second.source.removeprefix("models:/"))
    assert model.status == "READY"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "small", "version": 3}]
    assert {m.key: m.value for m in model.metrics}["miniature/average"] == pytest.approx(0.4)
    assert [o.model_id for o in runs(small)["iteration-1"].outputs.model_outputs] == [model.model_id]


def test_exact_match_decides_where_the_average_is_of_the_miniature_and_a_tie_leaves_the_champion(
    finished,
):
    """Two of 8 prompts more are +.25. The interval adds pairs of +1/2, -1/2 and 0: of 10, center .2, variance
    (.3 - .04) / 10, so .2 ± 1.96 * .1612. A tie: 0 ± 1.96 * sqrt(.1 / 10)."""
    small, _ = finished
    client = client_of(small)
    assert client.get_model_version_by_alias("small", "latest").version == 4
    assert client.get_model_version_by_alias("small", "champion").version == 3
    notes = [version.tags["champion_note"] for version in registry.versions(client, "small")]
    assert notes == [
        "champion until version 2",
        "champion until version 3",
        "champion: held-out exact match +0.250 [-0.116, +0.516] against version 2, 8 items, within noise",
        "not better than the champion: held-out exact match +0.000 [-0.196, +0.196] against version 3, 8 items",
    ]


def test_again_after_the_manifest_was_lost_changes_nothing(finished):
    small, manifests = finished

    def everything() -> dict:
        client = client_of(small)
        found = runs(small)
        return {
            "runs": {name: run.info.run_id for name, run in found.items()},
            "points": {
                (name, key): sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
                for name, run in found.items()
                for key in run.data.metrics
            },
            "inputs": {name: len(run.inputs.dataset_inputs) for name, run in found.items()},
            "outputs": {name: len(run.outputs.model_outputs) for name, run in found.items() if run.outputs},
            "versions": [(v.version, v.source) for v in registry.versions(client, "small")],
            "models": len(client.search_logged_models([found["small"].info.experiment_id])),
        }

    before = everything()
    for manifest in manifests:
        (manifest.folder / "manifest.json").unlink()
        do(small, RegisterSpec.model_validate(manifest.spec))
    assert everything() == before


@pytest.mark.parametrize("where", ["get_or_create_model", "get_or_create_version", "promote_if_better", "champion_of"])
def test_killed_between_two_steps_completes_without_doubles(root, monkeypatch, where):
    small = SmallExperiment(root, [0.3])
    [spec] = small.iterations()

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, where, die)
        with pytest.raises(KeyboardInterrupt):
            do(small, spec)
    assert read_manifest(small.store.folder(spec)) is None
    manifest = do(small, spec)
    client = client_of(small)
    assert [v.version for v in registry.versions(client, "small")] == [1]
    assert len(runs(small)) == 2
    assert client.get_model_version_by_alias("small", "champion").version == 1
    assert len(client.get_metric_history(manifest.metrics["run_id"], "loss")) == STEPS
    assert len(client.get_metric_history(manifest.metrics["parent_run_id"], "gap")) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train/adapter/adapter_model.safetensors", "flipped"),
        ("train/history.jsonl", "cut"),
        ("train/heldout.parquet", "empty"),
        ("evaluate/scores/gsm8k.json", "flipped"),
        ("evaluate/heldout.parquet", "missing"),
        ("generate/responses/0.parquet", "missing"),
    ],
)
def test_what_has_changed_since_its_stage_wrote_it_is_not_registered(root, name, kind):
    small = SmallExperiment(root, [0.3])
    [spec] = small.iterations()
    stage, _, file = name.partition("/")
    made = small.store.manifest(f"iteration-0/{stage}")
    assert made is not None
    damage(made.folder / file, kind)
    with pytest.raises(StoreError, match=f"{stage}-.* has changed since it was written: run again"):
        do(small, spec)
    assert not registry.versions(tracking.connect(spec.tracking_uri), "small")


def test_killed_during_the_upload_fills_the_same_model(root, monkeypatch):
    small = SmallExperiment(root, [0.3])
    [spec] = small.iterations()

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Client, "finalize_logged_model", die)
        with pytest.raises(KeyboardInterrupt):
            do(small, spec)
    do(small, spec)
    client = client_of(small)
    [model] = client.search_logged_models([runs(small)["small"].info.experiment_id])
    assert model.status == "READY"


def empty_database(small: SmallExperiment, manifest: Manifest, empty: Path) -> None:
    with (
        closing(sqlite3.connect(empty)) as source,
        closing(sqlite3.connect(small.root / "store" / "mlflow.db")) as target,
    ):
        source.backup(target)


def delete_run(small: SmallExperiment, manifest: Manifest, empty: Path) -> None:
    client_of(small).delete_run(manifest.metrics["run_id"])


def delete_parent_run(small: SmallExperiment, manifest: Manifest, empty: Path) -> None:
    client_of(small).delete_run(manifest.metrics["parent_run_id"])


@pytest.mark.parametrize("delete", [empty_database, delete_run, delete_parent_run])
def test_what_mlflow_lost_is_registered_again_once(root, database, delete):
    small = SmallExperiment(root, [0.3])
    specs = [small.initial(), *small.iterations()]
    manifests = [do(small, spec) for spec in specs]
    assert all(do(small, spec).reused for spec in specs)
    delete(small, manifests[1], database)
    again = [do(small, spec) for spec in specs]
    assert not again[1].reused
    assert all(do(small, spec).reused for spec in specs)
    assert set(runs(small)) == {"small", "initial", "iteration-0"}
    found = registry.versions(client_of(small), "small")
    assert [manifest.metrics["version"] for manifest in again] == [v.version for v in found] == [1, 2]
    assert champion(small) == 2


def test_a_version_that_was_deleted_stays_deleted(root):
    small = SmallExperiment(root, [0.3, 0.4])
    specs = small.iterations()
    for spec in specs:
        do(small, spec)
    client_of(small).delete_model_version("small", "1")
    assert all(do(small, spec).reused for spec in specs)
    assert [v.version for v in registry.versions(client_of(small), "small")] == [2]


def test_more_iterations_go_on_in_the_same_runs(root):
    small = SmallExperiment(root, [0.3, 0.4])
    for spec in small.iterations(1):
        do(small, spec)
    longer = SmallExperiment(root, [0.3, 0.4, 0.5], iterations=3)
    for spec in longer.iterations():
        do(longer, spec)
    found = runs(longer)
    assert set(found) == {"small", "iteration-0", "iteration-1", "iteration-2"}
    assert found["iteration-0"].data.tags["changed.iterations"] == "3"
    assert [v.version for v in registry.versions(client_of(longer), "small")] == [1, 2, 3]
    assert len(client_of(longer).get_metric_history(found["small"].info.run_id, "gap")) == 3


def notes_of(small: SmallExperiment) -> list[str]:
    return [v.tags["champion_note"] for v in registry.versions(client_of(small), "small")]


def champion(small: SmallExperiment) -> int:
    return client_of(small).get_model_version_by_alias("small", "champion").version


def test_back_from_a_recipe_that_was_left_half_way_the_experiment_is_finished_again(root):
    small = SmallExperiment(root, [0.3])
    specs = [small.initial(), *small.iterations()]
    longer = SmallExperiment(root, [0.3, 0.4])
    for spec in (*specs, longer.initial(), longer.iterations()[0]):
        do(small, spec)
    assert runs(small)["small"].info.status == "RUNNING"
    for spec in specs:
        do(small, spec)
    assert {run.info.status for run in runs(small).values()} == {"FINISHED"}
    assert all(do(small, spec).reused for spec in specs)


def test_the_last_of_the_demo_is_champion(root):
    """Its kind of numbers: the miniature's average falls from the first iteration on, exact match rises."""
    exact = [0.0, 0.25, 0.375, 0.5]
    small = SmallExperiment(root, [0.36, 0.35, 0.34], exact=exact)
    for spec in [small.initial(), *small.iterations()]:
        do(small, spec)
    assert champion(small) == 4


def test_the_initial_model_stays_champion_where_no_iteration_beats_it(root):
    small = SmallExperiment(root, [0.5, 0.6], exact=[0.5, 0.25, 0.25])
    for spec in [small.initial(), *small.iterations()]:
        do(small, spec)
    assert champion(small) == 1
    assert notes_of(small)[2] == (
        "not better than the champion: held-out exact match -0.250 [-0.516, +0.116] against version 1, 8 items"
    )
    assert client_of(small).get_model_version_by_alias("small", "latest").version == 3


@pytest.mark.parametrize(
    ("logprobs", "best"),
    [([-1.7, -1.5, -1.6, -1.4], 4), ([-1.7, -1.8, -1.75, -1.9], 1), ([-1.7, -1.8, -1.6, -1.6], 3)],
)
def test_log_probs_decide_without_answers_and_the_initial_ones_are_those_of_the_first_opponent(root, logprobs, best):
    data = {"path": str(root / "pairs.jsonl")}
    small = SmallExperiment(root, [0.3, 0.2, 0.1], logprobs=logprobs, data=data, evaluation={"initial": False})
    for spec in [small.initial(), *small.iterations()]:
        do(small, spec)
    assert champion(small) == best
    assert all(
        "held-out log-prob per token" in note or "until" in note or "initial" in note for note in notes_of(small)
    )


def test_registered_again_no_version_changes_its_note(root):
    """The initial model has no log-prob of its own: a second challenge could not be compared, and was warned of."""
    data = {"path": str(root / "pairs.jsonl")}
    small = SmallExperiment(
        root, [0.3, 0.2, 0.1], logprobs=[-1.7, -1.5, -1.6, -1.4], data=data, evaluation={"initial": False}
    )
    manifests = [do(small, spec) for spec in [small.initial(), *small.iterations()]]
    notes = notes_of(small)
    for manifest in manifests:
        (manifest.folder / "manifest.json").unlink()
        again = do(small, RegisterSpec.model_validate(manifest.spec))
        assert again.metrics["warnings"] == []
    assert notes_of(small) == notes
    assert champion(small) == 4


def test_real_benchmarks_decide_before_exact_match(root):
    """Of 100 items of each of two benchmarks, 10 changed: center 10 / 102 = .098, variance of each
    ((10 + 1) / 102 - .098²) / 102 = .000963, so .098 ± 1.96 * sqrt(2 * .000963) / 2."""
    small = SmallExperiment(root, [0.3, 0.2, 0.4], label=None, exact=[0.1, 0.2, 0.9, 0.1])
    for spec in [small.initial(), *small.iterations()]:
        do(small, spec)
    assert notes_of(small) == [
        "champion until version 2",
        "champion until version 4",
        "not better than the champion: benchmark average -0.100 [-0.141, -0.055] against version 2, 200 items",
        "champion: benchmark average +0.100 [+0.055, +0.141] against version 2, 200 items",
    ]


def test_a_failed_evaluation_never_becomes_champion(root):
    small = SmallExperiment(root, [0.3, None, 0.4], label=None)
    manifests = [do(small, spec) for spec in small.iterations()]
    second = notes_of(small)[1]
    assert second.startswith(
        "not compared: it has no benchmark average, which the champion, version 1, is measured by: measure both"
    )
    assert manifests[1].metrics["warnings"] == [second]
    assert manifests[2].metrics["warnings"] == []
    assert champion(small) == 3


def test_log_probs_that_are_no_numbers_never_become_champion(root):
    data = {"path": str(root / "pairs.jsonl")}
    small = SmallExperiment(root, [None], logprobs=[-1.7, math.nan], data=data, evaluation={"initial": False})
    for spec in [small.initial(), *small.iterations()]:
        do(small, spec)
    assert champion(small) == 1
    assert "nothing was measured" not in notes_of(small)[1]
    assert notes_of(small)[1].startswith("not compared: it has no held-out log-prob per token")


def test_other_settings_are_not_compared(root):
    small = SmallExperiment(root, [0.3], label=None)
    do(small, *small.iterations())
    other = SmallExperiment(root, [0.9], label=None, evaluation={"benchmarks": ["gsm8k", "mmlu"], "limit": 20})
    do(other, *other.iterations())
    assert champion(other) == 1
    assert "its benchmark average from other settings (limit: 10, here 20)" in notes_of(other)[1]


def test_other_held_out_pairs_are_not_compared(root):
    small = SmallExperiment(root, [0.3])
    do(small, *small.iterations())
    other = SmallExperiment(root, [0.3], exact=[0.1, 0.9], seed=1)
    do(other, *other.iterations())
    assert champion(other) == 1
    assert "its held-out exact match from other held-out pairs" in notes_of(other)[1]


def test_a_persons_choice_is_replaced_under_the_same_rule_only(root):
    small = SmallExperiment(root, [0.3, 0.3, 0.3, 0.3], exact=[0.1, 0.25, 0.5, 0.375, 0.625])
    specs = [small.initial(), *small.iterations()]
    for spec in specs[:3]:
        do(small, spec)
    client_of(small).set_registered_model_alias("small", "champion", "2")
    do(small, specs[3])
    assert champion(small) == 4  # better than the chosen one, though not than version 3
    client_of(small).set_registered_model_alias("small", "champion", "3")
    do(small, specs[4])
    assert champion(small) == 5


def forget(small: SmallExperiment, manifest: Manifest) -> Manifest:
    """Registers again what MLflow has."""
    (manifest.folder / "manifest.json").unlink()
    return do(small, RegisterSpec.model_validate(manifest.spec))


def test_a_version_that_a_person_demoted_stays_so_when_it_is_registered_again(root):
    small = SmallExperiment(root, [0.3], exact=[0.1, 0.25])
    manifests = [do(small, spec) for spec in [small.initial(), *small.iterations()]]
    client_of(small).set_registered_model_alias("small", "champion", "1")
    again = [forget(small, manifest) for manifest in manifests]
    assert champion(small) == 1
    assert [manifest.metrics["champion"] for manifest in again] == [True, False]
    client_of(small).delete_registered_model_alias("small", "champion")
    assert not forget(small, again[0]).metrics["champion"]
    assert "champion" not in client_of(small).get_registered_model("small").aliases


def test_a_kill_after_the_alias_moved_leaves_the_challenge_won(root, monkeypatch):
    small = SmallExperiment(root, [0.3], exact=[0.1, 0.25])
    do(small, small.initial())
    [spec] = small.iterations()

    def die_before_the_end(client: Client, name: str, version: str, key: str, value: str) -> None:
        if key == registry.JUDGED:
            raise KeyboardInterrupt
        MlflowClient.set_model_version_tag(client, name, version, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "set_model_version_tag", die_before_the_end)
        with pytest.raises(KeyboardInterrupt):
            do(small, spec)
    assert do(small, spec).metrics["champion_note"].startswith("champion: held-out exact match")
    assert champion(small) == 2


def test_an_earlier_iteration_registered_again_leaves_the_experiment_finished(root):
    small = SmallExperiment(root, [0.3, 0.4])
    manifests = [do(small, spec) for spec in [small.initial(), *small.iterations()]]
    ended = runs(small)["small"].info.end_time
    for manifest in manifests[:2]:
        forget(small, manifest)
        assert {run.info.status for run in runs(small).values()} == {"FINISHED"}
    assert runs(small)["small"].info.end_time == ended
    longer = SmallExperiment(root, [0.3, 0.4, 0.5], iterations=3)
    do(longer, longer.initial())
    assert runs(longer)["small"].info.status == "RUNNING"


def test_a_model_without_its_scores_gets_them(root):
    """MLflow writes them after those of the run: a kill in between leaves the run's alone."""
    small = SmallExperiment(root, [0.3])
    [spec] = small.iterations()
    manifest = do(small, spec)
    with closing(sqlite3.connect(root / "store" / "mlflow.db")) as database:
        database.execute("delete from logged_model_metrics where metric_name = 'gap'")
        database.commit()
    forget(small, manifest)
    client = client_of(small)
    [model] = client.search_logged_models([runs(small)["small"].info.experiment_id])
    assert "gap" in {metric.key for metric in model.metrics}
    assert len(client.get_metric_history(manifest.metrics["run_id"], "gap")) == 1


def test_the_parent_shows_data_source_and_models(finished):
    small, _ = finished
    parent = runs(small)["small"]
    [entry] = parent.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == (
        "annotated",
        small.prepared.pairs.digest[:36],
    )
    assert sorted(output.step for output in parent.outputs.model_outputs) == [-1, 0, 1, 2]
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    for run in runs(small).values():
        assert run.data.tags["mlflow.source.name"] == "iris"
        assert run.data.tags["mlflow.source.git.commit"] == commit


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_champion_whose_measures_are_gone_or_damaged_stays(root, kind):
    small = SmallExperiment(root, [0.3, 0.3])
    specs = [small.initial(), *small.iterations()]
    for spec in specs[:2]:
        do(small, spec)
    for measures in (root / "store" / "mlflow-artifacts").rglob("measures.json"):
        damage(measures, kind)
    do(small, specs[2])
    assert champion(small) == 2
    assert notes_of(small)[2].startswith(
        "not compared: the champion, version 2, has no measures in MLflow: measure both in the same way, or set the "
        "alias"
    )


def test_versions_are_compared_after_their_store_is_gone(root, tmp_path_factory):
    """MLflow elsewhere keeps the measures; the other machine's store, and its initial model's folder, are new."""
    uri = f"sqlite:///{root}/store/mlflow.db"
    small = SmallExperiment(root, [0.3, 0.3], exact=[0.1, 0.25, 0.5], tracking={"uri": uri})
    specs = [small.initial(), *small.iterations()]
    for spec in specs[:2]:
        do(small, spec)
    shutil.rmtree(root / "store" / "objects")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    other = SmallExperiment(elsewhere, [0.3, 0.3], exact=[0.1, 0.25, 0.5], tracking={"uri": uri})
    for spec in [other.initial(), *other.iterations()]:
        do(other, spec)
    found = registry.versions(client_of(other), "small")
    assert [v.tags["iteration"] for v in found] == ["initial", "0", "1"]
    assert found[0].tags["model_path"] == str(elsewhere / "model")
    assert champion(other) == 3


def test_the_initial_model_scored_again_is_the_same_version(root):
    small = SmallExperiment(root, [0.3], exact=[0.5, 0.25])
    for spec in [small.initial(), *small.iterations()]:
        do(small, spec)
    wanted = {"benchmarks": ["gsm8k", "mmlu"], "limit": 20}
    again = SmallExperiment(root, [0.3], label=None, exact=[0.25, 0.25], evaluation=wanted)
    do(again, again.initial())
    client = client_of(again)
    initial, first = registry.versions(client, "small")
    assert "label" not in initial.tags
    assert client.get_run(initial.tags["run"]).data.metrics["exact_match"] == 0.25
    assert client.get_model_version_by_alias("small", "latest").version == first.version


def test_an_initial_model_after_others_gets_no_version(root, tmp_path):
    small = SmallExperiment(root, [0.3])
    for spec in [small.initial(), *small.iterations()]:
        do(small, spec)
    (root / "model" / "config.json").write_text('{"other": 1}')
    other = SmallExperiment(root, [0.3], name="other", tracking={"registered_model": "small"})
    manifest = do(other, other.initial())
    assert manifest.metrics["version"] is None
    assert "tracking.registered_model: 'small' has versions" in manifest.metrics["warnings"][0]
    assert client_of(other).get_model_version_by_alias("small", "latest").version == 2


def test_warnings_are_tags_of_run_and_version(root):
    small = SmallExperiment(root, [0.3])
    small.warnings = {"generate": ["12 of 18 responses are <cut>", "second"]}
    manifests = [do(small, spec) for spec in [small.initial(), *small.iterations()]]
    text = "generate: 12 of 18 responses are <cut>\ngenerate: second"
    client = client_of(small)
    assert client.get_run(manifests[1].metrics["run_id"]).data.tags["warnings"] == text
    initial, first = registry.versions(client, "small")
    assert first.tags["warnings"] == text
    assert "warnings" not in initial.tags
    assert "warnings" not in client.get_run(manifests[0].metrics["run_id"]).data.tags


def test_credentials_of_a_recipe_are_not_logged(root):
    small = SmallExperiment(root, [0.3])
    [spec] = small.iterations()
    secret = spec.model_copy(update={"recipe": spec.recipe.replace("uri: null", "uri: http://me:hunter2@host:5000")})
    assert "hunter2" in secret.recipe
    manifest = do(small, secret)
    run = client_of(small).get_run(manifest.metrics["run_id"])
    assert run.data.params["tracking.uri"] == "http://***@host:5000"
    files = (path for path in (small.root / "store" / "mlflow-artifacts").rglob("*") if path.is_file())
    assert not any(b"hunter2" in path.read_bytes() for path in files)


@pytest.mark.integration
def test_the_command_killed_again_and_again_leaves_one_of_everything(root):
    small = SmallExperiment(root, [0.3])
    [spec] = small.iterations()
    (root / "spec.json").write_text(spec.model_dump_json())
    folder = small.store.folder(spec)
    command = [
        sys.executable,
        "-m",
        "iris_core.register",
        "--spec",
        str(root / "spec.json"),
        "--out",
        str(folder),
    ]
    milestones = [
        ("runs", 1),
        ("runs", 2),
        ("params", 60),
        ("inputs", 2),
        ("logged_models", 1),
        ("model_versions", 1),
        ("model_version_tags", 15),
        ("metrics", 30),
    ]
    for table, count in milestones:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and rows_in(root, table) < count:
            time.sleep(0.005)
        process.kill()
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    manifest = read_manifest(folder)
    found, client = runs(small), client_of(small)
    assert set(found) == {"small", "iteration-0"}
    assert manifest.metrics["run_id"] == found["iteration-0"].info.run_id
    assert [v.version for v in registry.versions(client, "small")] == [1]
    assert len(client.search_logged_models([found["small"].info.experiment_id])) == 1
    for run in found.values():
        for name in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), name
    assert len(found["iteration-0"].inputs.dataset_inputs) == 2
    assert len(found["iteration-0"].outputs.model_outputs) == 1


def rows_in(root: Path, table: str) -> int:
    with closing(sqlite3.connect(f"file:{root}/store/mlflow.db?mode=ro", uri=True, timeout=PATIENCE_S)) as database:
        return database.execute(f"select count(*) from {table}").fetchone()[0]


@pytest.mark.integration
def test_a_server_holds_the_same(mlflow_server, tmp_path):
    small = SmallExperiment(tmp_path, [0.3, 0.4], tracking={"uri": mlflow_server})
    specs = [small.initial(), *small.iterations()]
    for _ in range(2):
        for spec in specs:
            manifest = do(small, spec)
            (manifest.folder / "manifest.json").unlink()
    client, found = client_of(small), runs(small)
    assert set(found) == {"small", "initial", "iteration-0", "iteration-1"}
    assert len(client.get_metric_history(found["iteration-1"].info.run_id, "loss")) == STEPS
    assert len(client.get_metric_history(found["small"].info.run_id, "exact_match")) == 3
    assert [v.version for v in registry.versions(client, "small")] == ["1", "2", "3"]
    assert client.get_model_version_by_alias("small", "champion").version == "3"
    assert client.get_model_version_by_alias("small", "latest").version == "3"
    assert len(found["iteration-0"].inputs.dataset_inputs) == 2
    assert len(found["iteration-0"].outputs.model_outputs) == 1
    folder = Path(
        download_artifacts("models:/small@champion", dst_path=str(tmp_path / "copy"), tracking_uri=mlflow_server)
    )
    assert Artifact.of(folder).digest == small.policy(1).adapter.digest
    manifests = [do(small, spec) for spec in specs]
    assert all(do(small, spec).reused for spec in specs)
    client.delete_run(manifests[1].metrics["run_id"])
    assert [do(small, spec).reused for spec in specs] == [True, False, True]


@pytest.mark.integration
def test_a_server_that_dies_gives_an_error_worth_a_retry(mlflow_server, tmp_path, monkeypatch):
    small = SmallExperiment(tmp_path, [0.3], tracking={"uri": mlflow_server})
    [spec] = small.iterations()

    def die(*args: object) -> None:
        raise requests.ConnectionError("http://me:hunter2@127.0.0.1 is gone")

    monkeypatch.setattr(registry, "get_or_create_model", die)
    with pytest.raises(ServiceError, match=r"tracking\.uri: MLflow at http://127.*\*\*\*@127") as caught:
        do(small, spec)
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)
