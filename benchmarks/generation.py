"""Generation against raw vLLM: the same prompts, settings and seeds, from the prompts' tokens to the responses' texts.

Each repetition has prompts of its own, so that no side finds them in its prefix cache.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data import pairs
from benchmarks.sides import Side, Turns
from benchmarks.table import Line, Result, spread

PROMPTS, NEW_TOKENS = 32, 96


def measure(model: Path, data: Path | None, repeats: int) -> Result:
    """The line `generation`; it needs vLLM."""
    arguments = {"model": model, "data": data, "repeats": repeats + 1}
    with Side(ours, **arguments) as a, Side(peer, **arguments) as b:
        turns = [(a.turn(), b.turn()) for _ in range(repeats + 1)][1:]
        starts = [a.result(), b.result()]
    speeds = [[turn[side]["tokens_per_second"] for turn in turns] for side in (0, 1)]
    same = sum(first["token_ids"] == second["token_ids"] for first, second in turns)
    text = (
        f"{model.name}: {PROMPTS} prompts a repetition, up to {NEW_TOKENS} new tokens, temperature 1, a seed for each "
        f"prompt; both sides gave the same tokens in {same} of {len(turns)} repetitions. The peer is `vllm.LLM.generate` "
        f"with the same engine settings. Starting the engine, not in the table: {spread(starts[:1])} s ours, "
        f"{spread(starts[1:])} s the peer's."
    )
    line = Line("generation", "output tokens/s", speeds[0], speeds[1], "≥", 0.95)
    return Result("generation", [line], text)


def ours(turns: Turns, model: Path, data: Path | None, repeats: int) -> float:
    """Samples as the stage `generate` does; gives the seconds that the engine took to start."""
    from iris_core.generation.engines import open_engine
    from iris_core.modeling import loading

    tokenizer, prompts = loading.load_tokenizer(model), _prompts(model, data, repeats)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        sample = open_engine(_spec(model), max(map(len, prompts)), Path(work))
    seconds = time.perf_counter() - started
    for repetition in range(repeats):
        batch, seeds = _batch(prompts, repetition)
        turns.begin()
        started = time.perf_counter()
        samples = sample(batch, seeds)
        for item in samples:
            tokenizer.decode(item.token_ids, skip_special_tokens=True)
        turns.end(_found([item.token_ids for item in samples], time.perf_counter() - started))
    return seconds


def peer(turns: Turns, model: Path, data: Path | None, repeats: int) -> float:
    """Samples by vLLM alone; gives the seconds that the engine took to start."""
    import torch

    from iris_core.generation.vllm_settings import vllm_settings
    from iris_core.modeling.patches.vllm_environment import set_vllm_environment

    spec, prompts = _spec(model), _prompts(model, data, repeats)
    gpu, longest = torch.cuda.is_available(), max(map(len, prompts)) + NEW_TOKENS
    set_vllm_environment(gpu=gpu)
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    llm = LLM(str(model), **vllm_settings(spec.dtype, longest, gpu=gpu, samples=True))
    seconds = time.perf_counter() - started
    for repetition in range(repeats):
        batch, seeds = _batch(prompts, repetition)
        parameters = [SamplingParams(temperature=1.0, top_p=1.0, max_tokens=NEW_TOKENS, seed=seed) for seed in seeds]
        turns.begin()
        started = time.perf_counter()
        inputs = [{"prompt_token_ids": ids} for ids in batch]
        outputs = llm.generate(inputs, parameters, use_tqdm=False)
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        turns.end(_found(ids, time.perf_counter() - started))
    return seconds


def _spec(model: Path) -> Any:
    from iris_core.config import GenerationPart
    from iris_core.modeling.loading import resolve_dtype
    from iris_core.pipeline.specs import GenerateSpec
    from iris_core.store import Artifact, Policy

    return GenerateSpec(
        policy=Policy(model=Artifact(path=model, digest="benchmark")),
        pairs=Artifact(path=Path(), digest="benchmark"),
        generation=GenerationPart(backend="vllm", max_new_tokens=NEW_TOKENS),
        stop_token_ids=_chat(model).stop_token_ids,
        dtype=resolve_dtype("auto"),
        seed=0,
    )


def _prompts(model: Path, data: Path | None, repeats: int) -> list[list[int]]:
    """The tokens of all repetitions' prompts."""
    from iris_core.data.conversations import single_turn

    chat = _chat(model)
    tokenizer = chat.tokenizer

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    found = pairs(data, PROMPTS * repeats, tokens)
    return [chat.encode(single_turn(pair.prompt, pair.annotated))[0] for pair in found]


def _chat(model: Path) -> Any:
    from iris_core.config import DataPart
    from iris_core.data.chat import Chat
    from iris_core.modeling.loading import load_tokenizer

    return Chat(load_tokenizer(model), DataPart(path="benchmark"))


def _batch(prompts: list[list[int]], repetition: int) -> tuple[list[list[int]], list[int]]:
    own = range(PROMPTS * repetition, PROMPTS * (repetition + 1))
    return [prompts[index] for index in own], list(own)


def _found(token_ids: list[list[int]], seconds: float) -> dict[str, Any]:
    return {"tokens_per_second": sum(map(len, token_ids)) / seconds, "token_ids": token_ids}
