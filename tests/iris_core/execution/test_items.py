"""Items on two real workers: each is done once, a lost worker costs its item, and no worker outlives its stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from iris_core.common.errors import ConfigError, DataError, IrisError, OutOfMemoryError, StageCrashed, StageFailed
from iris_core.execution.item_worker import LABEL_VARIABLE
from iris_core.execution.launch import launch
from iris_core.execution.supervision import labelled
from iris_core.store import Execution, Manifest
from tests.processes import command_line, processes, wait_for
from tests.stages.items import ItemsSpec

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
TWO = Execution(gpus_per_node=2)


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m iris_core.items` works, on a machine without GPUs."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "stages"), str(ROOT)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def run(folder: Path, *names: str, execution: Execution = TWO) -> tuple[Manifest, list[str]]:
    lines: list[str] = []
    spec = ItemsSpec(names=list(names), execution=execution)
    return launch(spec, folder, on_log=lines.append), lines


def workers(folder: Path) -> list[psutil.Process]:
    """Those of a stage in `folder`, by their label and by their command lines."""
    found = {process for each in labelled(LABEL_VARIABLE).values() for process in each}
    return [each for each in processes(str(folder)) if each in found or "--items" in command_line(each)]


def owners(folder: Path) -> set[str]:
    """The processes that have written the files."""
    return {path.read_text().split()[0] for path in (folder / "files").iterdir()}


def test_two_workers_share_the_items_in_their_order(tmp_path: Path) -> None:
    names = [f"item-{number}" for number in range(8)]
    manifest, lines = run(tmp_path, *names)
    assert sorted(manifest.metrics["done"]) == names
    assert set(manifest.metrics["done"][:4]) <= set(names[:6])
    assert len(owners(tmp_path)) == 2
    assert {"worker 0: opened", "worker 1: opened"} <= set(lines)
    assert workers(tmp_path) == []


def test_one_item_has_no_worker(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "item")
    assert "opened" in lines


@pytest.mark.parametrize("name", ["once", "engine"])
def test_a_lost_worker_costs_its_item_only(tmp_path: Path, name: str) -> None:
    """The engine of the second kind is a process of its own, which the worker finds dead."""
    names = ["item-0", name, "item-1", "item-2", "item-3"]
    manifest, lines = run(tmp_path, *names)
    assert sorted(manifest.metrics["done"]) == sorted(names)
    assert {path.name for path in (tmp_path / "files").iterdir()} == set(names)
    (line,) = (line for line in lines if "WARNING" in line)
    assert "was killed by SIGKILL" in line
    assert f"{name} is done again by another" in line
    assert workers(tmp_path) == []


def test_an_item_that_costs_two_workers_is_named(tmp_path: Path) -> None:
    three = Execution(gpus_per_node=3)
    with pytest.raises(StageFailed) as error:
        run(tmp_path, "poison", "item-0", "item-1", "item-2", execution=three)
    assert str(error.value) == (
        "items: poison has cost 2 workers; the last one was killed by SIGKILL: run again to resume"
    )
    assert error.value.retryable
    assert workers(tmp_path) == []


def test_no_worker_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"items: no worker is left for once-.; the last one was killed by SIGKILL"):
        run(tmp_path, "once-0", "once-1", "item")
    manifest, _ = run(tmp_path, "once-0", "once-1", "item")
    assert len(manifest.metrics["done"]) == 3


@pytest.mark.parametrize(
    ("name", "kind", "message", "retryable"),
    [
        ("refuse", DataError, "data.path: no rows: give some", False),
        ("need", OutOfMemoryError, "items: out of memory: use smaller micro-batches (no more)", True),
        ("crash", StageCrashed, "items crashed with ZeroDivisionError: of a bug (its log has the traceback)", False),
    ],
)
def test_an_error_of_a_worker_is_that_of_the_stage(
    tmp_path: Path, name: str, kind: type[IrisError], message: str, retryable: bool
) -> None:
    """The other worker is in the middle of an item that does not end."""
    with pytest.raises(kind) as error:
        run(tmp_path, "endless", name)
    assert str(error.value) == message
    assert error.value.retryable is retryable
    assert workers(tmp_path) == []


def test_an_engine_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine: cannot be opened: choose another"):
        launch(ItemsSpec(names=["a", "b"], opens=False, execution=TWO), tmp_path)


def test_no_worker_outlives_its_stage(tmp_path: Path) -> None:
    """The stage was started by hand and is killed: no launcher looks after it."""
    spec = tmp_path / "spec.json"
    spec.write_text(ItemsSpec(names=["endless", "endless"], execution=TWO).model_dump_json())
    command = [sys.executable, "-m", "iris_core.items", "--spec", str(spec), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command) as stage:
        wait_for(lambda: (tmp_path / "out" / "tried-endless").exists() and len(workers(tmp_path / "out")) >= 2)
        stage.send_signal(signal.SIGKILL)
    wait_for(lambda: not workers(tmp_path / "out"))


def test_each_engine_sees_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    run(tmp_path, "a", "b", "c", "d", execution=Execution(tensor_parallel=2))
    seen = {path.read_text().split()[1] for path in (tmp_path / "files").iterdir()}
    assert seen == {"4,5", "6,7"}
