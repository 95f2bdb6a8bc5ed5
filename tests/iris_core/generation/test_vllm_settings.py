"""The arguments of vLLM's engine for sampling and scoring, on GPUs and CPUs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
from peft import LoraConfig

from iris_core.generation.vllm_settings import LORA_RANKS, max_lora_rank, vllm_settings

unit = pytest.mark.unit

EVERYWHERE = {
    "dtype": "bfloat16",
    "max_model_len": 300,
    "trust_remote_code": False,
    "seed": 0,
    "load_format": "safetensors",
    "disable_log_stats": True,
    "enable_prefix_caching": True,
    "generation_config": "vllm",
}
ON_CPU = {"enforce_eager": True, "distributed_executor_backend": "uni"}


@unit
@pytest.mark.parametrize("samples", [True, False])
def test_on_a_gpu_sampling_and_scoring_have_the_same_engine(samples: bool) -> None:
    assert vllm_settings("bfloat16", 300, gpu=True, samples=samples) == EVERYWHERE


@unit
@pytest.mark.parametrize(("longest", "batched"), [(300, 4096), (4096, 4096), (5000, 5000)])
def test_sampling_on_a_cpu_splits_no_prompt(longest: int, batched: int) -> None:
    """Batches hold 4,096 tokens, or the longest prompt with its response."""
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": batched}
    expected = EVERYWHERE | ON_CPU | whole | {"max_model_len": longest}
    assert vllm_settings("bfloat16", longest, gpu=False, samples=True) == expected


@unit
def test_scoring_on_a_cpu_shares_prefixes_in_short_blocks() -> None:
    expected = EVERYWHERE | ON_CPU | {"block_size": 32, "dtype": "float32"}
    assert vllm_settings("float32", 300, gpu=False, samples=False) == expected


@unit
def test_code_of_the_models_folder_runs_where_it_is_trusted() -> None:
    settings = vllm_settings("bfloat16", 300, gpu=True, samples=True, trust_remote_code=True)
    assert settings == EVERYWHERE | {"trust_remote_code": True}


@unit
@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize(
    ("rank", "served"),
    [(1, 8), (8, 8), (12, 16), (24, 32), (48, 64), (256, 256), (300, 320), (512, 512)],
)
def test_a_rank_is_rounded_up_to_one_that_vllm_takes(tmp_path: Path, rank: int, served: int, samples: bool) -> None:
    LoraConfig(r=rank, target_modules=["q_proj"]).save_pretrained(tmp_path)
    settings = vllm_settings("bfloat16", 300, gpu=True, samples=samples, adapter=tmp_path)
    assert settings == EVERYWHERE | {"enable_lora": True, "max_lora_rank": served}
    assert max_lora_rank(tmp_path) == served


@pytest.mark.integration
def test_vllm_takes_those_arguments_and_ranks() -> None:
    pytest.importorskip("vllm")
    from vllm.config.lora import MaxLoRARanks
    from vllm.engine.arg_utils import EngineArgs

    assert set(LORA_RANKS) == {rank for rank in get_args(MaxLoRARanks) if rank >= 8}
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for samples in (True, False):
        assert vllm_settings("bfloat16", 300, gpu=False, samples=samples).keys() <= known
    assert {"enable_lora", "max_lora_rank"} <= known
