"""Machines by name, and this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_core.common.errors import ConfigError
from iris_core.config import ExecutionPart
from iris_core.reporting.machine import Machine, machine_of, parse_machine
from iris_core.training.memory import Devices

pytestmark = pytest.mark.unit


def test_machines_by_name() -> None:
    assert parse_machine("8xH100-80GB") == Machine("H100", Devices(1, 8, 80e9))
    assert parse_machine("2x8xH100-80GB") == Machine("H100", Devices(2, 8, 80e9))
    assert parse_machine("8xA100-SXM4-80GB") == Machine("A100-SXM4", Devices(1, 8, 80e9))
    assert parse_machine("L40S-48GB") == Machine("L40S", Devices(1, 1, 48e9))
    assert str(parse_machine("8xH100-80GB")) == "8 × H100 with 80 GB"
    assert str(parse_machine("2x8xH100-80GB")) == "2 machines of 8 × H100 with 80 GB"


@pytest.mark.parametrize(
    "text",
    [
        *("8", "8xH100", "0xH100-80GB", "H100-80", "8 x H100-80GB", "8xH100-80TB", "2x2x8xH100-80GB"),
        *("8xH100-80GB\n", "1٣xH100-80GB", f"{'1' * 5000}xH100-80GB", f"8xH100-{'9' * 400}GB"),
    ],
)
def test_what_names_no_machine_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write number, name and memory, as in 8xH100-80GB, or for several"):
        parse_machine(text)


def test_more_of_a_machine() -> None:
    assert str(parse_machine("2xH100-80GB").times(4)) == "8 × H100 with 80 GB"
    assert str(parse_machine("8xH100-80GB").times(2)) == "2 machines of 8 × H100 with 80 GB"
    assert str(parse_machine("2x4xH100-80GB").times(2)) == "4 machines of 4 × H100 with 80 GB"


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor _ in 1 2 3 4; do echo 'GPU-1, NVIDIA H100 80GB HBM3, 575.1, 81559, 9.0'; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    memory = 81559 * 2**20
    assert machine_of(ExecutionPart()) == Machine("NVIDIA H100 80GB HBM3", Devices(1, 4, memory))
    assert machine_of(ExecutionPart(gpus_per_node=3)).devices == Devices(1, 3, memory)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert machine_of(ExecutionPart()).devices == Devices(1, 2, memory)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert machine_of(ExecutionPart(gpus_per_node=2)) == Machine("CPU", Devices(1, 2, None))
    assert str(machine_of(ExecutionPart())) == "1 × CPU"


def test_a_part_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi lists it below its GPU, and its profile has its memory."""
    tool, listed = tmp_path / "nvidia-smi", tmp_path / "listed"
    listed.write_text(
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)\n"
        "  MIG 2g.10gb     Device  0: (UUID: MIG-b1)\n"
        "  MIG 1c.3g.20gb  Device  1: (UUID: MIG-b2)\n"
    )
    tool.write_text(
        f"#!/bin/sh\n[ $1 = -L ] && cat {listed} || echo 'GPU-aa, NVIDIA A100-SXM4-40GB, 575.1, 40960, 8.0'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-b2")
    assert machine_of(ExecutionPart()) == Machine("MIG 1c.3g.20gb", Devices(1, 1, 20e9))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-b1")
    assert machine_of(ExecutionPart()) == Machine("MIG 2g.10gb", Devices(1, 1, 10e9))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert machine_of(ExecutionPart()).name == "NVIDIA A100-SXM4-40GB"
