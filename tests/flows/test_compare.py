"""Loops side by side on the tiny model, by the flow `iris-compare` and by the command, and what they share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from flows.compare import compare
from iris_core.config import Experiment, parse_experiment
from iris_core.pipeline.members import member
from iris_core.pipeline.plan import Prepared, generate_spec, recipe_yaml
from iris_core.reporting.trajectories import read_trajectories
from iris_core.store import Manifest, Store
from tests.prefect_server import new_server


def settings(folder: Path, model: Path, pairs: Path) -> dict[str, Any]:
    return {
        "name": "both",
        "iterations": 2,
        "store": str(folder / "store"),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"path": str(pairs), "heldout": 6, "answer_pattern": "Answer: (.+)"},
        "generation": {"backend": "transformers", "max_new_tokens": 8},
        "objective": {"beta": 0.3},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "optimizer": "adamw"},
        "evaluation": {
            "benchmarks": ["musr"],
            "data_dir": "miniature",
            "backend": "hf",
            "limit": 2,
        },
    }


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with new_server():
        yield


@pytest.mark.integration
def test_objectives_are_compared(prefect_server, tiny_model, pairs_file, tmp_path):
    content = settings(tmp_path, tiny_model, pairs_file)
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "New?", "response": "Answer: 1"}\n{"prompt": "Newer?", "response": "Answer: 2"}\n'
    )
    content["generation"]["samples"] = 2
    content["data"] |= {"prompts_path": str(tmp_path / "prompts.jsonl"), "reference_column": "response"}
    experiment = parse_experiment({**content, "verification": {"kind": "answer"}})
    page = compare(experiment, ["rft", "tspin"], [0])

    def manifest(objective: str, place: str) -> Manifest:
        found = Store(tmp_path / "store", f"both-{objective}-seed-0").manifest(place)
        assert found is not None
        return found

    def folder(objective: str, place: str) -> Path:
        return manifest(objective, place).folder.resolve()

    for place in ("prepare", "initial/evaluate"):
        assert folder("tspin", place) == folder("rft", place)
    sampled_first = folder("rft", "iteration-0/generate")
    assert folder("tspin", "iteration-0/generate") != sampled_first  # T-SPIN has a use for one response
    verified = member(experiment, "verified", 0)
    prepared = Prepared.of(manifest("rft", "prepare"))
    again = generate_spec(verified, prepared, prepared.start(verified))
    assert Store.of(verified).folder(again).resolve() == sampled_first
    sampled = {name: manifest(name, "iteration-1/generate").metrics["finish_reasons"] for name in ("rft", "tspin")}
    assert {name: sum(counts.values()) for name, counts in sampled.items()} == {"rft": 2 * 20 + 6, "tspin": 18 + 6}
    second = manifest("tspin", "iteration-1/train")
    first_answers = manifest("tspin", "iteration-0/generate").outputs["responses"].digest
    assert second.spec["initial_synthetic"]["digest"] == first_answers
    assert manifest("tspin", "iteration-0/train").spec["initial_synthetic"] is None
    own = manifest("rft", "iteration-1/train").spec
    assert own["initial_synthetic"] is None
    assert [each["digest"] for each in own["verdicts"]] == [
        manifest("rft", "iteration-1/generate").outputs["verdicts"].digest
    ]

    rows = {row["objective"]: row for row in json.loads((page.parent / "comparison.json").read_text())}
    assert set(rows) == {"rft", "tspin"}
    for name, row in rows.items():
        assert row["verifier"] == "answer"
        assert set(row["differences"]) == set(rows) - {name}
        held = manifest(name, "iteration-1/train").metrics["heldout"]
        assert row["logprob"][-1]["value"] == pytest.approx(held["annotated_logprob_per_token"]["value"], abs=1e-6)
        assert len(row["logprob"]) == len(row["exact_match"]) == 3  # initial and two iterations
        assert row["gap"] == pytest.approx(manifest(name, "iteration-1/train").metrics["gap"]["value"], abs=1e-6)
        assert row["label"] == "miniature"
    text = page.read_text()
    assert all(f'<th scope="row">{name}</th>' in text for name in rows)
    assert "<svg" in text
    assert "http://" not in text.replace("http://www.w3.org", "")

    check_tracked(experiment, rows)


def check_tracked(experiment: Experiment, rows: dict[str, Any]) -> None:
    """The comparison is a run of its own in MLflow."""
    client = MlflowClient(experiment.tracking_uri)
    mlflow_experiment = client.get_experiment_by_name("both")
    assert mlflow_experiment is not None
    (run,) = client.search_runs([mlflow_experiment.experiment_id])
    assert run.data.tags["iris.role"] == "comparison"
    assert run.data.metrics["tspin/logprob"] == pytest.approx(rows["tspin"]["logprob"][-1]["value"])
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
        "comparison.html",
        "comparison.json",
    }


@pytest.mark.integration
def test_a_recipe_and_its_baseline_by_the_command(tiny_model, pairs_file, tmp_path):
    """Its loop keeps its name and report; fine-tuning beside it shares what it can; again, all of it is reused."""
    content = settings(tmp_path, tiny_model, pairs_file)
    content |= {"name": "own", "iterations": 1, "evaluation": {"benchmarks": []}, "verification": {"kind": "answer"}}
    experiment = parse_experiment(content)
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(experiment))
    own, sft = Store.of(experiment), Store.of(member(experiment, "sft", 0))

    first = run_with_sft(tmp_path / "recipe.yaml")
    for place in ("prepare", "initial/evaluate"):
        assert (own.home / place).resolve() == (sft.home / place).resolve()
    assert all((store.home / "report.html").is_file() for store in (own, sft))
    page = own.home / "comparison" / "comparison.html"
    assert page.is_file()
    found = {row.objective: row for row in read_trajectories(page.with_suffix(".json"))}
    assert set(found) == {"iris verified", "sft"}
    assert set(found["iris verified"].differences) == {"sft"}
    headings = ["own", "own: the model after each iteration", "own-sft-seed-0"]
    headings += ["own-sft-seed-0: the model after each iteration", "own"]
    assert [line for line in first if line in headings] == headings
    (beside,) = (line for line in first if line.startswith("iris verified − sft: "))
    assert re.fullmatch(r"iris verified − sft: [+-]\d\.\d\d \[.*\], paired by prompt", beside)
    assert f"compared {page}" in first
    shared = reused(first[first.index("own-sft-seed-0") :])
    assert shared == ["✓ prepare", "✓ initial · evaluate", "✓ publish"]  # which the loop itself has published

    again = run_with_sft(tmp_path / "recipe.yaml")
    assert reused(again) == [line.split("  ")[0] for line in first if line.startswith("✓")]
    assert beside in again


def reused(lines: list[str]) -> list[str]:
    """The stages that were not run, of lines that the command printed."""
    return [line.split("  ")[0] for line in lines if re.match("✓.* reused", line)]


def run_with_sft(recipe: Path) -> list[str]:
    """The lines that the command prints."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "deployments.cli", "run", str(recipe), "--with-sft"]
    result = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", timeout=900)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout.splitlines()
