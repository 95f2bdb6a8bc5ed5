"""The whole loop by its command in S3 and on nodes of a Ray cluster, one of which is lost; then on other machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from iris_core.common.digest import folder_digest
from iris_core.execution.launch import launch
from iris_core.pipeline.specs import EvaluateSpec, GenerateSpec, TrainSpec
from iris_core.store import Execution, Manifest, Spec, Store
from tests.processes import processes, wait_for
from tests.ray_cluster import Nodes
from tests.s3 import CREDENTIALS, contents, files, new_bucket, s3_server

pytest.importorskip("ray")
pytestmark = pytest.mark.integration


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as found:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": found}.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def nodes(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Two nodes that work and a head, each with a cache folder of its own."""
    cluster = Nodes(3, apart=True)
    for name, value in {**cluster.environment, "RAY_ADDRESS": cluster.address}.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.end()


def recipe(folder: Path, uri: str, tiny_model: Path, pairs_file: Path) -> Path:
    content = {
        "name": "kept",
        "iterations": 1,
        "store": uri,
        "model": {"path": str(tiny_model), "dtype": "float32"},
        "data": {"path": str(pairs_file), "heldout": 4, "answer_pattern": r"(?m)^Answer: (.+)$"},
        "generation": {"backend": "transformers", "max_new_tokens": 8, "shard_size": 8},
        "training": {
            "method": "full",
            "sharding": "full",
            "batch_size": 8,
            "epochs": 12,  # of three steps each: long enough to lose a node in the middle
            "tokens_per_batch": 256,
            "checkpoint_every": 4,
        },
        "evaluation": {"benchmarks": ["musr"], "data_dir": "miniature", "limit": 2, "initial": False, "backend": "hf"},
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
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return ran.stdout


def found_in(manifest: Manifest) -> dict[str, Any]:
    """What must be equal wherever a stage ran: what it has written, without times, and what it has measured."""
    if manifest.stage == "evaluate":
        return {name: manifest.metrics[name] for name in ("benchmarks", "average", "heldout")}
    found: dict[str, Any] = {name: output.digest for name, output in manifest.outputs.items()}
    if "history" in found:
        rows = (manifest.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        found["history"] = [json.loads(row)["loss"] for row in rows]
    return found


def lose_in_training(nodes: Nodes, endpoint: str, uri: str) -> str:
    """Loses the machine of the first rank once a checkpoint is in the bucket; another machine takes its place.

    Returns:
        The history in the newest checkpoint that was left in the bucket.
    """
    server, objects = files(endpoint), f"{uri.removeprefix('s3://')}/objects"

    def checkpoints() -> list[str]:
        found = server.glob(f"{objects}/train-*/.digests/checkpoint-*")
        return sorted(found, key=lambda name: int(name.rpartition("-")[2]))

    wait_for(checkpoints)
    nodes.lose_first_rank("iris_core.train", objects.split("/")[0])
    folder, _, newest = checkpoints()[-1].partition("/.digests/")
    history: bytes = server.cat_file(f"{folder}/work/{newest}/history.jsonl")
    server.pipe_file(f"{folder}/.lock", b'{"seconds": 0}')  # as if the lost machine's two minutes were over
    nodes.add()
    return history.decode()


def test_a_loop_on_ray_in_s3_is_that_of_one_machine(
    tmp_path: Path, tiny_model: Path, pairs_file: Path, endpoint: str, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the machine with the checkpoints is lost in training. Also, other machines take it over and report it."""
    uri = new_bucket(endpoint)
    path = recipe(tmp_path, uri, tiny_model, pairs_file)
    with ThreadPoolExecutor(1) as thread:
        lost = thread.submit(lose_in_training, nodes, endpoint, uri)
        iris(tmp_path / "a", "run", str(path), "--set", "execution.launcher=ray", "--set", "execution.nodes=2")
    wait_for(lambda: not processes("iris_core.", uri.split("/")[2]))
    made = contents(endpoint, uri)
    (history,) = (text.decode() for name, text in made.items() if Path(name).match("objects/train-*/history.jsonl"))
    assert history.startswith(lost.result())  # times and all: these steps were not repeated
    assert 4 <= len(lost.result().splitlines()) < len(history.splitlines()) == 36
    iris(tmp_path / "b", "run", str(path))
    after = contents(endpoint, uri)
    report = iris(tmp_path / "c", "report", "kept", "--store", uri)
    stages = {name.split("/")[1].rpartition("-")[0] for name in made if name.startswith("objects/")}
    assert stages == {"prepare", "generate", "train", "evaluate", "schedule", "register", "publish"}
    kept = [name for name in made if name.startswith("objects/") and "/publish-" not in name]  # each report is another
    assert {name: after.get(name) for name in kept} == {name: made[name] for name in kept}
    a, b = (next((tmp_path / machine).glob("stores/*/objects")) for machine in "ab")
    for folder in a.glob("train-*"):
        assert folder_digest(folder, ("model/*",)) == folder_digest(b / folder.name, ("model/*",))
    assert "the model after each iteration" in report
    assert "kept/report.html" in after

    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "b"))
    store = Store(b.parent, "kept")
    alone: list[tuple[type[Spec], int]] = [(GenerateSpec, 1), (TrainSpec, 2), (EvaluateSpec, 1)]
    for kind, processes_here in alone:
        manifest = store.manifest(f"iteration-0/{kind.stage}")
        assert manifest is not None
        assert manifest.spec["execution"]["launcher"] == "ray"
        here = kind.of(manifest).model_copy(update={"execution": Execution(gpus_per_node=processes_here)})
        assert found_in(launch(here, tmp_path / "local" / kind.stage)) == found_in(manifest)
    for cache in Path(nodes.folder).glob("cache-*"):
        left = [path for name in ("work", ".new") for path in cache.glob(f"stores/*/objects/*/{name}/**/*")]
        assert not [path for path in left if path.is_file()]
