"""Answers to held-out prompts: by the engine that scores benchmarks, and what `data.answer_pattern` finds in a text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch

from iris_core.modeling import padding


def extract(pattern: str, text: str) -> str | None:
    """The last capture of `pattern` in `text` (the last match, where it captures nothing), stripped; None if not found."""
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if not found:
        return None
    last = found[-1]
    return str(last.group(last.lastindex or 0)).strip()


def answer(
    lm: Any, prompts: Sequence[list[int]], max_new_tokens: int, ends: list[int], batch_size: int
) -> list[list[int]]:
    """Greedy answers to `prompts` by the engine inside `lm`, in their order, without the token of `ends` that ended them."""
    if hasattr(lm, "lora_request"):
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=ends, detokenize=False)
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = lm.model.generate(inputs, settings, lora_request=lm.lora_request, use_tqdm=False)
        return [_before(list(output.outputs[0].token_ids), ends) for output in outputs]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    for batch in padding.batches(lm.model, [prompts[i] for i in order], batch_size):
        asked = [order[place] for place in batch]
        found = _answer_batch(lm, [prompts[i] for i in asked], max_new_tokens, ends)
        answers |= zip(asked, found, strict=True)
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def _answer_batch(lm: Any, prompts: list[list[int]], max_new_tokens: int, ends: list[int]) -> list[list[int]]:
    from iris_core.evaluation.prefix_lm import half_the_threads, prefill

    padded = lm.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(lm.device)
    cache = {}
    if lm.only_attends:
        found = prefill(lm.model, padded["input_ids"], padded["attention_mask"], shared=0)
        cache = {"past_key_values": found}
    with half_the_threads():
        ids = lm.model.generate(
            **padded,
            **cache,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=lm.tokenizer.pad_token_id,
        )
    return [_before(row, ends) for row in ids[:, padded["input_ids"].shape[1] :].tolist()]


def _before(token_ids: list[int], ends: list[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in ends, token_ids))
