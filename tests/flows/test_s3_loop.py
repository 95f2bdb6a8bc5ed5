"""The whole loop by its command with a store in S3: on one machine, then on another that has nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from iris_core.common.digest import folder_digest
from tests.s3 import CREDENTIALS, contents, new_bucket, s3_server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def recipe(folder: Path, uri: str, tiny_model: Path, pairs_file: Path) -> Path:
    content = {
        "name": "kept",
        "iterations": 1,
        "store": uri,
        "model": {"path": str(tiny_model), "dtype": "float32"},
        "data": {"path": str(pairs_file), "heldout": 4, "answer_pattern": r"(?m)^Answer: (.+)$"},
        "generation": {"backend": "transformers", "max_new_tokens": 8, "shard_size": 16},
        "training": {"batch_size": 8, "epochs": 1, "tokens_per_batch": 256, "checkpoint_every": 1},
        "evaluation": {"benchmarks": [], "initial": False, "backend": "hf"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def iris(cache: Path, *arguments: str) -> str:
    """Runs the command `iris` on the machine with this cache folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"IRIS_CACHE": str(cache), "COLUMNS": "200"}
    command = [sys.executable, "-m", "deployments.cli", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return ran.stdout


def test_two_machines_share_a_loop(
    tmp_path: Path, tiny_model: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as endpoint:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        uri = new_bucket(endpoint)
        path = recipe(tmp_path, uri, tiny_model, pairs_file)
        iris(tmp_path / "a", "run", str(path))
        made = contents(endpoint, uri)
        iris(tmp_path / "b", "run", str(path))
        after = contents(endpoint, uri)
        report = iris(tmp_path / "c", "report", "kept", "--store", uri)
    stages = {name.split("/")[1].rpartition("-")[0] for name in made if name.startswith("objects/")}
    assert stages == {"prepare", "generate", "train", "evaluate", "schedule", "register", "publish"}
    kept = [name for name in made if name.startswith("objects/") and "/publish-" not in name]  # each report is another
    assert {name: after.get(name) for name in kept} == {name: made[name] for name in kept}
    a, b = (next((tmp_path / machine).glob("stores/*/objects")) for machine in "ab")
    for folder in a.glob("train-*"):
        assert folder_digest(folder, ("adapter/*",)) == folder_digest(b / folder.name, ("adapter/*",))
    assert "the model after each iteration" in report
    assert "kept/report.html" in after
