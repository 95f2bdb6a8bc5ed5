"""Greedy answers by the engine that scores benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from iris_core.modeling import padding


def answer(
    lm: Any, prompts: Sequence[list[int]], max_new_tokens: int, stop_token_ids: list[int], batch_size: int
) -> list[list[int]]:
    """Greedy answers to `prompts`, in their order, each without the stop token.

    Args:
        lm: from `iris_core.evaluation.harness.open_model`.
        prompts: token ids.
        max_new_tokens: most tokens of an answer.
        stop_token_ids: tokens that end an answer.
        batch_size: prompts that generate together by transformers.
    """
    if hasattr(lm, "lora_request"):  # vLLM's
        from vllm import SamplingParams

        settings = SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=stop_token_ids, detokenize=False
        )
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = lm.model.generate(inputs, settings, lora_request=lm.lora_request, use_tqdm=False)
        return [_until_stop(list(output.outputs[0].token_ids), stop_token_ids) for output in outputs]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    for batch in padding.batches(lm.model, [prompts[i] for i in order], batch_size):
        indices = [order[position] for position in batch]
        generated = _answer_batch(lm, [prompts[i] for i in indices], max_new_tokens, stop_token_ids)
        answers |= zip(indices, generated, strict=True)
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def _answer_batch(lm: Any, prompts: list[list[int]], max_new_tokens: int, stop_token_ids: list[int]) -> list[list[int]]:
    from iris_core.evaluation.prefix_lm import half_the_threads, prefill

    padded = lm.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(lm.device)
    cache = {}
    if lm.only_attends:
        cache["past_key_values"] = prefill(lm.model, padded["input_ids"], padded["attention_mask"], shared=0)
    with half_the_threads():
        ids = lm.model.generate(
            **padded,
            **cache,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_token_ids,
            pad_token_id=lm.tokenizer.pad_token_id,
        )
    return [_until_stop(row, stop_token_ids) for row in ids[:, padded["input_ids"].shape[1] :].tolist()]


def _until_stop(token_ids: list[int], stop_token_ids: list[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in stop_token_ids, token_ids))
