"""A Ray cluster that cannot be used: every reason is one line that says what to do, within seconds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iris_core.common.errors import ConfigError, IrisError, ServiceError, StoreError
from iris_core.config import parse_experiment
from iris_core.execution.launch import launch, supervise
from iris_core.execution.ray_check import check
from iris_core.pipeline.plan import prepare_spec
from iris_core.store import Artifact
from iris_core.store.spec import Execution
from tests.ray_cluster import Nodes
from tests.stages.items import ItemsSpec

pytest.importorskip("ray")
pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]

MACHINE = """
import sys
from iris_core.config import ExecutionPart
from iris_core.reporting.machine import machine_of
machine = machine_of(ExecutionPart(launcher="ray", nodes=2, ray_address=sys.argv[1]))
nodes, count, memory = vars(machine.devices).values()
print(f"{nodes} machines of {count} × {machine.name}, {memory:.0f} bytes each, Ray is loaded: {'ray' in sys.modules}")
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One node, with two CPUs. nvidia-smi shows two GPUs on it and on others, but not to the tests."""
    tool = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor each in 1900 900; do echo GPU-1, Small, 575.1, $each, 9.0; done\n")
    tool.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
        cluster = Nodes(1)
    yield cluster
    cluster.end()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    for name, value in nodes.environment.items():
        monkeypatch.setenv(name, value)


def refused(folder: Path, **execution: object) -> IrisError:
    """The error of a training on Ray, with these settings."""
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"execution": Execution(launcher="ray", **execution).model_dump()}))  # type: ignore[arg-type]
    command = [sys.executable, "-m", "iris_core.execution.ray_ranks", "--spec", str(spec), "--out", str(folder / "out")]
    error = supervise("train", command, lambda event: None, lambda line: None)
    assert error is not None
    assert "\n" not in str(error)
    return error


def test_too_few_nodes(tmp_path: Path, nodes: Nodes) -> None:
    error = refused(tmp_path, nodes=2, ray_address=nodes.address)
    assert isinstance(error, ServiceError)
    assert "execution.nodes: 2 × 1 CPU are asked of the Ray cluster, which has " in str(error)
    assert str(error).count(": 2 CPU: start more nodes, or lower execution.nodes") == 1


def test_nodes_that_are_too_small(tmp_path: Path, nodes: Nodes) -> None:
    error = refused(tmp_path, gpus_per_node=3, ray_address=nodes.address)
    assert "1 × 3 CPU are asked" in str(error)


def test_a_run_asks_before_its_first_stage(nodes: Nodes) -> None:
    """Also whether a node can hold one engine."""
    check(Execution(launcher="ray", ray_address=nodes.address))
    with pytest.raises(ServiceError, match="2 × 1 CPU are asked"):
        check(Execution(launcher="ray", nodes=2, ray_address=nodes.address))
    with pytest.raises(ConfigError, match=r"execution\.tensor_parallel: 2, but a stage has 1 CPU on each node"):
        check(Execution(launcher="ray", tensor_parallel=2, ray_address=nodes.address))


def test_an_address_where_nothing_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = refused(tmp_path, ray_address=f"127.0.0.1:{port}")
    assert isinstance(error, ServiceError)
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in str(error)


def test_another_token(tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    error = refused(tmp_path, ray_address=nodes.address)
    assert isinstance(error, ServiceError)
    assert "is the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token?" in str(error)


def test_a_dtype_is_not_chosen_on_another_kind_of_machine(
    tmp_path: Path, nodes: Nodes, tiny_model: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's machine has no GPU; a node has one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    nodes.add(gpus=1)
    experiment = parse_experiment(
        {
            "name": "test",
            "model": {"path": str(tiny_model)},
            "data": {"path": str(pairs_file), "heldout": 4},
            "execution": {"launcher": "ray", "ray_address": nodes.address},
        }
    )
    with pytest.raises(ConfigError, match=r"model\.dtype: auto is chosen .*: write bfloat16"):
        launch(prepare_spec(experiment), tmp_path / "prepare")


def test_inputs_are_compared_with_their_digests_on_each_node(
    tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a worker starts: one that reads another model samples other responses."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "stages"), str(ROOT)]))
    (tmp_path / "model").write_text("weights")
    source = Artifact.of(tmp_path / "model")
    (tmp_path / "model").write_text("others!")
    execution = Execution(launcher="ray", ray_address=nodes.address)
    with pytest.raises(StoreError, match=r"model is missing on .*, or is not what the run's machine has there: put it"):
        launch(ItemsSpec(names=["item"], source=source, execution=execution), tmp_path / "out")


def test_a_plan_is_made_for_the_gpus_of_the_nodes(nodes: Nodes) -> None:
    """The run's machine has none. Of nodes with 4, 2 and fewer a stage takes 2 each. The run itself never loads Ray."""
    nodes.add(gpus=2), nodes.add(gpus=4)
    done = subprocess.run([sys.executable, "-c", MACHINE, nodes.address], capture_output=True, text=True)
    assert done.stdout == f"2 machines of 2 × Small, {900 * 2**20} bytes each, Ray is loaded: False\n", done.stderr


def test_settings_of_libraries_reach_other_nodes_and_secrets_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from iris_core.execution.ray_cluster import forwarded

    passed = {"NCCL_DEBUG": "INFO", "TOKENIZERS_PARALLELISM": "false", "IRIS_CACHE": "/data/cache"}
    kept = {"HF_TOKEN": "hf_secret", "IRIS_SECRET_KEY": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "EDITOR": "vi"}
    for name, value in {**passed, **kept}.items():
        monkeypatch.setenv(name, value)
    assert passed.items() <= forwarded().items()
    assert not kept.keys() & forwarded().keys()
