"""The environment of vLLM's engine, and that vLLM still knows these variables."""

import os

import pytest

from iris_core.modeling.patches.vllm_environment import EVERYWHERE, ON_CPU, set_vllm_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EVERYWHERE | ON_CPU:
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)


@pytest.mark.unit
def test_on_a_cpu_the_engine_runs_in_the_stages_process() -> None:
    set_vllm_environment(gpu=False)
    assert {name: os.environ[name] for name in EVERYWHERE | ON_CPU} == {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


@pytest.mark.unit
def test_on_a_gpu_vllm_decides() -> None:
    set_vllm_environment(gpu=True)
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert not any(name in os.environ for name in ON_CPU)


@pytest.mark.unit
def test_what_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    set_vllm_environment(gpu=False)
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "7"


@pytest.mark.integration
def test_vllm_reads_them() -> None:
    envs = pytest.importorskip("vllm.envs")
    assert (EVERYWHERE | ON_CPU).keys() <= envs.environment_variables.keys()
    set_vllm_environment(gpu=False)
    assert envs.VLLM_NO_USAGE_STATS is True
    assert envs.VLLM_CPU_KVCACHE_SPACE == 2
    assert envs.VLLM_CPU_OMP_THREADS_BIND == "nobind"
    assert envs.VLLM_ENABLE_V1_MULTIPROCESSING is False
