"""Stages on the nodes of a real Ray cluster: the results of one machine, also where a node is lost in the middle.

Three nodes on this machine; each stage uses two. A lost node is replaced after the test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iris_core.common.errors import IrisError, StageFailed
from iris_core.config import Experiment, parse_experiment
from iris_core.evaluate import evaluate
from iris_core.evaluation import miniature
from iris_core.execution.launch import launch
from iris_core.generate import generate
from iris_core.pipeline import plan
from iris_core.pipeline.plan import LoopState, Prepared
from iris_core.prepare import prepare
from iris_core.store import Execution, Manifest, Spec, run_stage
from tests.processes import processes, wait_for
from tests.ray_cluster import Nodes

pytest.importorskip("ray")
pytestmark = pytest.mark.integration

BENCHMARKS = ["gsm8k", "math", "hellaswag", "winogrande", "ifeval", "mmlu"]
TRAINING = {
    "method": "full",
    "sharding": "full",
    "epochs": 24,  # of three steps each: long enough to lose a node in the middle
    "batch_size": 8,
    "tokens_per_batch": 1024,
    "checkpoint_every": 6,
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes(3)
    yield cluster
    cluster.end()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    for name, value in {**nodes.environment, "RAY_ADDRESS": nodes.address}.items():
        monkeypatch.setenv(name, value)


def experiment(model: Path, pairs: Path) -> Experiment:
    return parse_experiment(
        {
            "name": "test",
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"path": str(pairs), "heldout": 4},
            "generation": {"backend": "transformers", "max_new_tokens": 300, "shard_size": 2},
            "training": TRAINING,
            "evaluation": {"backend": "hf", "data_dir": "miniature", "max_gen_tokens": 64, "benchmarks": BENCHMARKS},
        }
    )


@pytest.fixture(scope="module")
def inputs(
    tiny_model: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, Prepared, LoopState]:
    config = experiment(tiny_model, pairs_file)
    prepared = Prepared.of(
        run_stage(plan.prepare_spec(config), tmp_path_factory.mktemp("prepared") / "prepare", prepare)
    )
    return config, prepared, prepared.start(config)


@pytest.fixture(scope="module")
def generated(inputs: tuple[Experiment, Prepared, LoopState], tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Generation on this machine, by one engine."""
    return run_stage(plan.generate_spec(*inputs), tmp_path_factory.mktemp("generated") / "generate", generate)


def on_ray(spec: Spec) -> Spec:
    return spec.model_copy(update={"execution": Execution(launcher="ray", nodes=2)})


def lost_when(nodes: Nodes, condition: Callable[[], object], *words: str) -> threading.Thread:
    """Kills a node that runs a process with `words` once the condition holds."""

    def run() -> None:
        wait_for(condition)
        nodes.lose(*words)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def digests(manifest: Manifest) -> dict[str, Any]:
    """Of the outputs; the history holds times and is compared by its losses."""
    found: dict[str, Any] = {name: output.digest for name, output in manifest.outputs.items()}
    if "history" in found:
        rows = (manifest.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        found["history"] = [json.loads(row)["loss"] for row in rows]
    return found


def test_training_gives_the_files_of_two_local_ranks(
    inputs: tuple[Experiment, Prepared, LoopState], generated: Manifest, nodes: Nodes, tmp_path: Path
) -> None:
    """Though a node is lost in the middle."""
    spec = plan.train_spec(*inputs, generated)
    local = spec.model_copy(update={"execution": Execution(gpus_per_node=2)})
    expected = digests(launch(local, tmp_path / "local"))
    out = tmp_path / "lost"
    thread = lost_when(nodes, lambda: any(out.glob("work/checkpoint-*")), "iris_core.train", str(out))
    with pytest.raises(StageFailed, match=r"train: the node .* was lost: run again to resume"):
        launch(on_ray(spec), out)
    thread.join()
    wait_for(lambda: not processes(str(out)))
    nodes.add()
    events: list[Any] = []
    assert digests(launch(on_ray(spec), out, events.append)) == expected
    assert events[-1].done == events[-1].total


FAILED_THEN_LOST = """
import os, sys, time
import ray
from iris_core.execution.ray_agent import Lines, Place
from iris_core.execution.ray_ranks import follow

@ray.remote
class Node:
    def fail(self):
        yield Lines([], [], ("ExchangeFailed", "an exchange between ranks failed"))

    def vanish(self):
        time.sleep(2)
        os._exit(1)
        yield

ray.init(sys.argv[1], log_to_driver=False)
kept, lost = Node.remote(), Node.remote()
streams = {
    kept.fail.options(num_returns="streaming").remote(): Place("kept", "", 0),
    lost.vanish.options(num_returns="streaming").remote(): Place("lost", "", 0),
}
print(repr(follow(streams)))
"""


def test_a_lost_node_explains_what_other_ranks_said_before(nodes: Nodes) -> None:
    command = [sys.executable, "-c", FAILED_THEN_LOST, nodes.address]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout
    assert "StageFailed('train: the node lost was lost: run again to resume')" in said.splitlines()  # among Ray's


def test_a_user_error_on_a_node_is_the_error_of_the_stage(
    inputs: tuple[Experiment, Prepared, LoopState], generated: Manifest, tmp_path: Path
) -> None:
    spec = plan.train_spec(*inputs, generated)
    broken = spec.model_copy(update={"policy": spec.policy.model_copy(update={"model": spec.pairs})})
    with pytest.raises(IrisError) as raised:
        launch(on_ray(broken), tmp_path / "out")
    assert not isinstance(raised.value, StageFailed)
    wait_for(lambda: not processes(str(tmp_path / "out")))


def test_generation_goes_on_without_a_lost_node(
    inputs: tuple[Experiment, Prepared, LoopState], generated: Manifest, nodes: Nodes, tmp_path: Path
) -> None:
    out, lines = tmp_path / "generate", list[str]()
    thread = lost_when(nodes, lambda: any(out.glob("responses/shard-*")), "iris_core.generate", "--items", str(out))
    assert digests(launch(on_ray(plan.generate_spec(*inputs)), out, on_log=lines.append)) == digests(generated)
    thread.join()
    assert sum("a worker is lost (was lost with its node" in line for line in lines) == 1
    wait_for(lambda: not processes(str(out)))
    nodes.add()


def test_evaluation_goes_on_without_a_lost_node(
    inputs: tuple[Experiment, Prepared, LoopState], nodes: Nodes, tmp_path: Path
) -> None:
    config, prepared, state = inputs
    spec = plan.evaluate_spec(config, prepared, state.policy, miniature.FOLDER)
    expected = run_stage(spec, tmp_path / "local", evaluate).metrics
    out, lines = tmp_path / "evaluate", list[str]()
    thread = lost_when(nodes, lambda: any(out.glob("scores/*")), "iris_core.evaluate", "--items", str(out))
    found = launch(on_ray(spec), out, on_log=lines.append).metrics
    thread.join()
    assert {name: found[name] for name in ("benchmarks", "average")} == {
        name: expected[name] for name in ("benchmarks", "average")
    }
    assert sum("a worker is lost (was lost with its node" in line for line in lines) == 1
    wait_for(lambda: not processes(str(out)))
    nodes.add()
