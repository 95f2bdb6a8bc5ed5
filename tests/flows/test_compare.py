"""The flow `iris-compare`: two objectives by real loops on the tiny model, what they share, and the comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from flows.compare import compare, compare_with_sft
from iris_core.config import Experiment, parse_experiment
from iris_core.pipeline.members import member
from iris_core.pipeline.plan import Prepared, generate_spec
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
    check_baseline(experiment.model_copy(update={"name": "own", "iterations": 1}))


def check_baseline(experiment: Experiment) -> None:
    """A recipe's loop keeps its name and has its report; fine-tuning on the pairs beside it shares what it can."""
    page = compare_with_sft(experiment)
    own, sft = Store.of(experiment), Store.of(member(experiment, "sft", 0))
    assert page.samefile(own.home / "comparison" / "comparison.html")
    assert (own.home / "report.html").is_file()
    for place in ("prepare", "initial/evaluate"):
        assert (own.home / place).resolve() == (sft.home / place).resolve()
    found = {row.objective: row for row in read_trajectories(page.parent / "comparison.json")}
    assert set(found) == {"iris verified", "sft"}
    assert set(found["iris verified"].differences) == {"sft"}


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
