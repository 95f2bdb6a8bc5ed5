"""The whole loop by its command, killed (SIGKILL) in each long stage: nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from iris_core.execution.supervision import LAUNCH_VARIABLE
from iris_core.generate import generate
from iris_core.pipeline.specs import GenerateSpec, TrainSpec
from iris_core.store import Manifest, Store, run_stage
from iris_core.train import train
from tests.processes import environment, processes, wait_for

pytestmark = pytest.mark.integration

STAGES = ("generate", "train", "evaluate")
PATIENCE_S = 900.0


def write_recipe(folder: Path, tiny_model: Path, pairs_file: Path) -> Path:
    recipe = {
        "name": "killed",
        "iterations": 1,
        "store": str(folder / "store"),
        "model": {"path": str(tiny_model), "dtype": "float32"},
        "data": {"path": str(pairs_file), "heldout": 4, "answer_pattern": r"(?m)^Answer: (.+)$"},
        "generation": {"backend": "transformers", "max_new_tokens": 48, "shard_size": 2},
        "training": {
            "batch_size": 2,
            "epochs": 4,
            "tokens_per_batch": 128,
            "learning_rate": 1e-3,
            "checkpoint_every": 2,
        },
        "evaluation": {
            "benchmarks": ["gsm8k", "winogrande", "hellaswag"],
            "data_dir": "miniature",
            "backend": "hf",
            "max_gen_tokens": 64,
            "initial": False,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path) -> subprocess.Popen[bytes]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with (recipe.parent / "run.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "run", str(recipe)],
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(recipe: Path) -> Store:
    process = start(recipe)
    assert process.wait(PATIENCE_S) == 0, (recipe.parent / "run.log").read_text()[-4000:]
    return Store(recipe.parent / "store", "killed")


def units_done(store: Path, stage: str) -> dict[Path, int]:
    """The stage's finished units (shards, checkpoints, scores) and when each was written."""
    patterns = {
        "generate": "generate-*/responses/shard-*.parquet",
        "train": "train-*/work/checkpoint-*/normalizer.json",
        "evaluate": "evaluate-*/scores/*.json",
    }
    return {path: path.stat().st_mtime_ns for path in (store / "objects").glob(patterns[stage])}


def kill_in(recipe: Path, stage: str) -> dict[Path, int]:
    """Starts the loop, kills it once `stage` has finished a unit; what was finished then."""
    store = recipe.parent / "store"
    process = start(recipe)
    until = time.monotonic() + PATIENCE_S
    while not units_done(store, stage):
        assert process.poll() is None, (recipe.parent / "run.log").read_text()[-4000:]
        assert time.monotonic() < until, f"{stage} did not begin"
        time.sleep(0.02)
    done = units_done(store, stage)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not stages_alive(store))
    assert not list((store / "objects").glob(f"{stage}-*/manifest.json")), f"{stage} was over before it was killed"
    return done


def stages_alive(store: Path) -> list[psutil.Process]:
    return [process for process in processes(str(store)) if LAUNCH_VARIABLE in environment(process)]


def history(manifest: Manifest) -> list[dict]:
    return [json.loads(line) for line in manifest.artifact("history").path.read_text().splitlines()]


def states(store: Path, kind: str) -> Counter[str]:
    """How many runs of a kind (flow_run, task_run) the Prefect history in the store has in each state."""
    with closing(sqlite3.connect(store / ".prefect" / "prefect.db")) as database:
        return Counter(state for (state,) in database.execute(f"select state_type from {kind}"))


def test_killed_in_every_stage_and_resumed(tiny_model, pairs_file, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model, pairs_file)
    kept = {}
    for stage in STAGES:
        kept[stage] = kill_in(recipe, stage)
    resumed = finish(recipe)

    manifests, undisturbed = {}, {}
    for spec, stage, output in ((GenerateSpec, generate, "responses"), (TrainSpec, train, "adapter")):
        found = resumed.manifest(f"iteration-0/{spec.stage}")
        assert found is not None
        manifests[spec.stage] = found
        undisturbed[spec.stage] = run_stage(spec.of(found), tmp_path / "undisturbed" / spec.stage, stage)
        assert found.outputs[output].digest == undisturbed[spec.stage].outputs[output].digest
    for stage in ("generate", "evaluate"):  # a unit that was finished is not done again
        assert all(path.stat().st_mtime_ns == written for path, written in kept[stage].items())
    at = max(int(path.parent.name.rpartition("-")[2]) for path in kept["train"])
    checkpoint_written = max(kept["train"].values()) / 1e9
    resumed_steps, steps = history(manifests["train"]), history(undisturbed["train"])
    assert all(row["time"] <= checkpoint_written for row in resumed_steps[:at])
    assert [row["loss"] for row in resumed_steps] == [row["loss"] for row in steps]

    history_of_runs = states(tmp_path / "store", "flow_run")
    assert history_of_runs == {
        "CRASHED": 2 * len(STAGES),
        "COMPLETED": 2,
    }  # the loop's, its iteration's
    assert set(states(tmp_path / "store", "task_run")) == {"CRASHED", "COMPLETED"}

    client = MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len([run for run in runs if run.data.tags.get("iris.iteration") == "0"]) == 1
    [parent] = [run for run in runs if run.data.tags["iris.role"] == "experiment"]
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files == {"recipe.yaml", "report.html", "report.json"}
    found = {version.tags["iteration"] for version in client.search_model_versions("name = 'killed'")}
    assert found == {"initial", "0"}
