"""How many processes a stage has on a machine, from what the environment and nvidia-smi show."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_core.common import gpus
from iris_core.common.errors import ConfigError
from iris_core.execution import devices
from iris_core.store import Execution

pytestmark = pytest.mark.unit
LISTED = """#!/bin/sh
echo "GPU-11, NVIDIA H100 80GB HBM3, 575.1, 81559, 9.0"
echo "GPU-21, NVIDIA H100 80GB HBM3, 575.1, 81559, 9.0"
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where nvidia-smi may be."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", []), ("-1", []), ("NoDevFiles", []), ("0, 2", ["0", "2"]), ("GPU-a,1,-1,2", ["GPU-a", "1"])],
)
def test_the_environment_chooses_gpus(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv(gpus.VISIBLE, visible)
    assert gpus.visible() == expected


def test_nvidia_smi_lists_gpus(machine: Path) -> None:
    (machine / "nvidia-smi").write_text(LISTED)
    (machine / "nvidia-smi").chmod(0o755)
    assert gpus.visible() == ["0", "1"]
    assert devices.processes(Execution()) == 2


@pytest.mark.usefixtures("machine")
def test_without_gpus_there_are_as_many_processes_as_asked_for() -> None:
    assert devices.processes(Execution()) == 1
    assert devices.processes(Execution(gpus_per_node=3)) == 3
    assert devices.engine_gpus(Execution(gpus_per_node=4, tensor_parallel=2)) == [[], []]


def test_gpus_are_divided_among_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "3,4,5,6,7")
    assert devices.engine_gpus(Execution(gpus_per_node=2)) == [["3"], ["4"]]
    assert devices.engine_gpus(Execution(tensor_parallel=2)) == [["3", "4"], ["5", "6"]]


def test_what_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "3,4")
    with pytest.raises(ConfigError, match=r"execution.gpus_per_node: 4, but this machine shows 2 GPUs"):
        devices.processes(Execution(gpus_per_node=4))
    with pytest.raises(ConfigError, match=r"execution.tensor_parallel: 4, but a stage has 2 devices on this machine"):
        devices.engine_gpus(Execution(tensor_parallel=4))
