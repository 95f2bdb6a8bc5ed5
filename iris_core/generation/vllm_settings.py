"""The arguments of vLLM's engine, the same for sampling and for scoring where nothing forbids it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as `max_lora_rank`
CPU_BATCHED_TOKENS = 4096
CPU_CACHE_BLOCK = 32  # tokens; vLLM's default on a CPU is 128, half of a few-shot prompt


def vllm_settings(
    dtype: str,
    max_model_len: int,
    *,
    gpu: bool,
    samples: bool,
    adapter: Path | None = None,
    trust_remote_code: bool = False,
    tensor_parallel: int = 1,
) -> dict[str, Any]:
    """Arguments of `vllm.LLM` beside the model's folder.

    Args:
        dtype: "bfloat16" or "float32".
        max_model_len: tokens of the longest prompt with its response; bounds the engine's memory.
        gpu: whether the engine runs on a GPU.
        samples: whether each request samples with a seed of its own; else they ask for log-probabilities.
        adapter: folder of the PEFT adapter that requests name; None: they name none.
        trust_remote_code: run code from the model's folder.
        tensor_parallel: devices that hold the model together; another number may sample other responses.
    """
    settings: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": max_model_len,
        "trust_remote_code": trust_remote_code,
        "seed": 0,
        "load_format": "safetensors",  # "auto" prefers consolidated*.safetensors, if there are any
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # nothing of the model's generation_config.json
    }
    if adapter is not None:
        settings |= {"enable_lora": True, "max_lora_rank": max_lora_rank(adapter)}
    if not gpu:
        settings |= _cpu_settings(max_model_len, samples)
    if tensor_parallel > 1:
        settings |= {"tensor_parallel_size": tensor_parallel, "distributed_executor_backend": "mp"}
    return settings


def max_lora_rank(adapter: Path) -> int:
    """The smallest `max_lora_rank` of vLLM that holds the adapter in the folder `adapter`."""
    from peft import PeftConfig

    rank = PeftConfig.from_pretrained(str(adapter)).r
    return next(served for served in LORA_RANKS if served >= rank)


def _cpu_settings(max_model_len: int, samples: bool) -> dict[str, Any]:
    """What differs on a CPU, where the engine runs inside the stage's process."""
    settings: dict[str, Any] = {"enforce_eager": True, "distributed_executor_backend": "uni"}
    if not samples:
        return settings | {"block_size": CPU_CACHE_BLOCK}
    # A prompt split over two steps fails there if it has a seed of its own.
    return settings | {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, CPU_BATCHED_TOKENS),
    }
