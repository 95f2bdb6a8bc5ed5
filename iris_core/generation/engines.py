"""Sampling engines: token ids of prompts in, sampled responses out.

    sample = open_engine(spec, longest_prompt, work)
    samples = sample(prompts, seeds)

The engine is vLLM's or transformers' (`backends`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iris_core.generation import backends
from iris_core.generation.vllm_settings import vllm_settings
from iris_core.modeling import loading, padding
from iris_core.modeling.patches.vllm_environment import set_vllm_environment
from iris_core.pipeline.specs import GenerateSpec

TRANSFORMERS_BATCH = 32  # prompts that generate together


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
"""Prompts (token ids) and a seed for each to one response for each, in their order."""


def resolve_backend(name: str) -> str:
    """ "vllm" or "transformers"; "auto" is vLLM where it is installed.

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    return backends.resolve("generation.backend", name, "transformers")


def check_backend(spec: GenerateSpec) -> None:
    """Checks that the engine of `spec` is installed and can use the GPUs that `spec` gives it.

    Raises:
        ConfigError: it is not, or cannot.
    """
    backend = resolve_backend(spec.generation.backend)
    backends.check_tensor_parallel("generation.backend", backend, spec.execution.tensor_parallel)


def open_engine(spec: GenerateSpec, longest_prompt: int, work: Path) -> Sampler:
    """Loads the policy of `spec` into its engine.

    Args:
        spec: policy, sampling settings, backend.
        longest_prompt: tokens of the longest prompt; bounds the engine's memory.
        work: folder for files that only the engine needs; it is removed when the stage is complete.
    """
    if resolve_backend(spec.generation.backend) == "vllm":
        return _open_vllm(spec, longest_prompt, work)
    return _open_transformers(spec)


def _open_vllm(spec: GenerateSpec, longest_prompt: int, work: Path) -> Sampler:
    backends.check_device("generation.backend", "vllm", "transformers")
    generation, gpu = spec.generation, torch.cuda.is_available()
    set_vllm_environment(gpu=gpu)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folder, adapter = spec.policy.model.path, spec.policy.adapter
    if adapter and not gpu:
        # vLLM's LoRA operators on a CPU copy the adapter for every token: merged into the weights it costs nothing.
        folder, adapter = _merge(spec, work / "merged"), None
    settings = vllm_settings(
        sampling_dtype(spec),
        longest_prompt + generation.max_new_tokens,
        gpu=gpu,
        samples=True,
        adapter=adapter.path if adapter else None,
        trust_remote_code=spec.trust_remote_code,
        tensor_parallel=spec.execution.tensor_parallel,
    )
    llm = LLM(str(folder), **settings)
    request = LoRARequest("policy", 1, str(adapter.path)) if adapter else None

    def parameters(seed: int) -> SamplingParams:
        return SamplingParams(
            temperature=generation.temperature,
            top_p=generation.top_p,
            max_tokens=generation.max_new_tokens,
            seed=seed,
            stop_token_ids=spec.stop_token_ids,
            detokenize=False,
        )

    def sample(prompts: list[list[int]], seeds: list[int]) -> list[Sample]:
        llm.reset_prefix_cache()  # a shard's responses depend on that shard alone
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = llm.generate(inputs, [parameters(seed) for seed in seeds], lora_request=request, use_tqdm=False)
        completions = [output.outputs[0] for output in outputs]
        return [Sample(list(item.token_ids), item.finish_reason or "length") for item in completions]

    return sample


def sampling_dtype(spec: GenerateSpec) -> str:
    """The dtype to sample in: on a CPU, merging a small adapter in bfloat16 would round it away."""
    merged = spec.policy.adapter is not None and loading.device().type == "cpu"
    return "float32" if merged else spec.dtype


def _merge(spec: GenerateSpec, folder: Path) -> Path:
    """Saves the model of `spec` with its adapter merged into the weights, in fp32."""
    model = loading.load_policy(spec.policy, "float32", trust_remote_code=spec.trust_remote_code)
    model.merge_and_unload().save_pretrained(folder)
    loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code).save_pretrained(folder)
    return folder


def _open_transformers(spec: GenerateSpec) -> Sampler:
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    dtype = sampling_dtype(spec)
    model = loading.load_policy(spec.policy, dtype, trust_remote_code=spec.trust_remote_code)
    loading.sample_plainly(model)
    generation, stop_token_ids = spec.generation, spec.stop_token_ids
    sampling: dict[str, Any] = {"do_sample": False}
    if generation.temperature > 0:
        sampling = {"do_sample": True, "temperature": generation.temperature, "top_p": generation.top_p, "top_k": 0}

    @torch.inference_mode()
    def sample_batch(prompts: list[list[int]], seed: int) -> list[Sample]:
        torch.manual_seed(seed)
        padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
        ids = model.generate(
            **padded,
            max_new_tokens=generation.max_new_tokens,
            eos_token_id=stop_token_ids,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        return [_truncate(row, stop_token_ids) for row in ids[:, padded["input_ids"].shape[1] :].tolist()]

    def sample(prompts: list[list[int]], seeds: list[int]) -> list[Sample]:
        samples: dict[int, Sample] = {}
        for indices in padding.batches(model, prompts, TRANSFORMERS_BATCH):
            batch = sample_batch([prompts[index] for index in indices], seeds[indices[0]])
            samples |= zip(indices, batch, strict=True)
        return [samples[index] for index in range(len(prompts))]

    return sample


def _truncate(token_ids: list[int], stop_token_ids: list[int]) -> Sample:
    """The tokens up to the first stop token, which is included; what follows is padding."""
    for index, token in enumerate(token_ids):
        if token in stop_token_ids:
            return Sample(token_ids[: index + 1], "stop")
    return Sample(token_ids, "length")
