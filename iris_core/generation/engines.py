"""Sampling engines: one function that turns token ids of prompts into sampled responses, by vLLM or by transformers.

sample = open_engine(spec)
samples = sample(prompts, seeds)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iris_core.generation import backends
from iris_core.modeling import loading, padding
from iris_core.pipeline.specs import GenerateSpec

HF_BATCH = 32
CPU_BATCHED_TOKENS = 4096
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as `max_lora_rank`


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        token_ids: the tokens, the end-of-turn token included where the model gave one.
        finish_reason: "stop" (end of turn) or "length" (cut at `max_new_tokens`).
    """

    token_ids: list[int]
    finish_reason: str


Sampler = Callable[[list[list[int]], list[int]], list[Sample]]


def backend(name: str) -> str:
    """ "vllm" or "transformers"; "auto" is vLLM where it is installed.

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    return backends.resolve("generation.backend", name, "transformers")


def open_engine(spec: GenerateSpec, longest_prompt: int, work: Path) -> Sampler:
    """Loads the policy of `spec` into its engine.

    Args:
        spec: policy, sampling settings, backend.
        longest_prompt: tokens of the longest prompt; bounds the engine's memory.
        work: folder for what only the engine needs; it goes when the stage is complete.
    """
    if backend(spec.generation.backend) == "vllm":
        return _open_vllm(spec, longest_prompt, work)
    return _open_transformers(spec)


def vllm_settings(dtype: str) -> dict[str, Any]:
    """Engine arguments that hold for every use of vLLM here; call before vLLM is imported.

    On a CPU the engine runs inside this process (a stage is a process of its own already): vLLM's default there keeps
    one core busy waiting and imports everything three times over.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    settings: dict[str, Any] = {
        "dtype": dtype,
        "load_format": "safetensors",  # "auto" takes consolidated*.safetensors where they lie beside
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # nothing of the model's generation_config.json
    }
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        settings |= {"enforce_eager": True, "distributed_executor_backend": "uni"}
    return settings


def served_rank(adapter: Path) -> int:
    """The smallest `max_lora_rank` of vLLM that holds the adapter in the folder `adapter`."""
    from peft import PeftConfig

    rank = PeftConfig.from_pretrained(str(adapter)).r
    return next(served for served in LORA_RANKS if served >= rank)


def _open_vllm(spec: GenerateSpec, longest_prompt: int, work: Path) -> Sampler:
    settings = vllm_settings(sampling_dtype(spec))
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folder, adapter = spec.policy.model.path, spec.policy.adapter
    if adapter and not torch.cuda.is_available():
        # vLLM's LoRA operators on CPU copy the adapter for every token: added to the weights it costs nothing.
        folder, adapter = _merge(spec, work / "merged"), None
    request = LoRARequest("policy", 1, str(adapter.path)) if adapter else None
    if adapter:
        settings |= {
            "enable_lora": True,
            "max_lora_rank": served_rank(adapter.path),
            "max_loras": 1,
        }
    generation = spec.generation
    longest = longest_prompt + generation.max_new_tokens
    if not torch.cuda.is_available():  # a prompt split over two steps fails there if it has a seed of its own
        settings |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(longest, CPU_BATCHED_TOKENS),
        }
    llm = LLM(
        str(folder),
        max_model_len=longest,
        trust_remote_code=spec.trust_remote_code,
        seed=0,
        **settings,
    )

    def sample(prompts: list[list[int]], seeds: list[int]) -> list[Sample]:
        llm.reset_prefix_cache()  # a shard's responses depend on that shard alone
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            [
                SamplingParams(
                    temperature=generation.temperature,
                    top_p=generation.top_p,
                    max_tokens=generation.max_new_tokens,
                    seed=seed,
                    stop_token_ids=spec.stop_token_ids,
                    detokenize=False,
                )
                for seed in seeds
            ],
            lora_request=request,
            use_tqdm=False,
        )
        completions = [output.outputs[0] for output in outputs]
        return [Sample(list(item.token_ids), item.finish_reason or "length") for item in completions]

    return sample


def sampling_dtype(spec: GenerateSpec) -> str:
    """The number format to sample in; on a CPU, bfloat16 would round a small adapter away where it is added."""
    adapted = spec.policy.adapter is not None and loading.device().type == "cpu"
    return "float32" if adapted else spec.dtype


def _merge(spec: GenerateSpec, folder: Path) -> Path:
    """Saves the model of `spec` with its adapter added to the weights, in fp32."""
    model = loading.load_policy(spec.policy, "float32", trust_remote_code=spec.trust_remote_code)
    model.merge_and_unload().save_pretrained(folder)
    loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code).save_pretrained(folder)
    return folder


def _open_transformers(spec: GenerateSpec) -> Sampler:
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    dtype = sampling_dtype(spec)
    model = loading.load_policy(spec.policy, dtype, trust_remote_code=spec.trust_remote_code)
    loading.sample_plainly(model)
    generation, ends = spec.generation, spec.stop_token_ids
    sampling: dict[str, Any] = {"do_sample": False}
    if generation.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "top_k": 0,
        }

    @torch.inference_mode()
    def batch(prompts: list[list[int]], seed: int) -> list[Sample]:
        torch.manual_seed(seed)
        padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
        ids = model.generate(
            **padded,
            max_new_tokens=generation.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        return [_until(row, ends) for row in ids[:, padded["input_ids"].shape[1] :].tolist()]

    def sample(prompts: list[list[int]], seeds: list[int]) -> list[Sample]:
        found: dict[int, Sample] = {}
        for places in padding.batches(model, prompts, HF_BATCH):
            samples = batch([prompts[place] for place in places], seeds[places[0]])
            found |= zip(places, samples, strict=True)
        return [found[place] for place in range(len(prompts))]

    return sample


def _until(token_ids: list[int], ends: list[int]) -> Sample:
    """`token_ids` up to and with the first of `ends`."""
    for index, token in enumerate(token_ids):
        if token in ends:
            return Sample(token_ids[: index + 1], "stop")
    return Sample(token_ids, "length")
