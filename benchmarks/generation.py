"""Generation against vLLM alone: the same prompts, settings and seeds, from token ids of prompts to response texts.

Each round has its own prompts, so that neither run has them in its prefix cache.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data import pairs
from benchmarks.interleaved import Rounds, Run
from benchmarks.table import Line, Result, spread

PROMPTS, NEW_TOKENS = 32, 96


def measure(model: Path, data: Path | None, repeats: int) -> Result:
    """The line `generation`; it needs vLLM."""
    arguments = {"model": model, "data": data, "repeats": repeats + 1}
    with Run(ours, **arguments) as a, Run(peer, **arguments) as b:
        rounds = [(a.round(), b.round()) for _ in range(repeats + 1)][1:]
        starts = [a.result(), b.result()]
    speeds = [[both[run]["tokens_per_second"] for both in rounds] for run in (0, 1)]
    same = sum(first["token_ids"] == second["token_ids"] for first, second in rounds)
    text = (
        f"{model.name}: {PROMPTS} prompts per round, up to {NEW_TOKENS} new tokens, temperature 1, a seed for each "
        f"prompt; both runs gave the same tokens in {same} of {len(rounds)} rounds. The peer is `vllm.LLM.generate` "
        f"with the same engine settings. Starting the engine, not in the table: {spread(starts[:1])} s ours, "
        f"{spread(starts[1:])} s the peer's."
    )
    line = Line("generation", "output tokens/s", speeds[0], speeds[1], "≥", 0.95)
    return Result("generation", [line], text)


def ours(rounds: Rounds, model: Path, data: Path | None, repeats: int) -> float:
    """Samples as the stage `generate` does; returns the seconds that the engine took to start."""
    from iris_core.generation.engines import open_engine
    from iris_core.modeling import loading

    tokenizer, prompts = loading.load_tokenizer(model), _prompts(model, data, repeats)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        sample = open_engine(_spec(model), max(map(len, prompts)), Path(work))
    seconds = time.perf_counter() - started
    for repetition in range(repeats):
        batch, seeds = _batch(prompts, repetition)
        rounds.begin()
        started = time.perf_counter()
        samples = sample(batch, seeds)
        for item in samples:
            tokenizer.decode(item.token_ids, skip_special_tokens=True)
        rounds.end(_found([item.token_ids for item in samples], time.perf_counter() - started))
    return seconds


def peer(rounds: Rounds, model: Path, data: Path | None, repeats: int) -> float:
    """Samples by vLLM alone; returns the seconds that the engine took to start."""
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
        rounds.begin()
        started = time.perf_counter()
        inputs = [{"prompt_token_ids": ids} for ids in batch]
        outputs = llm.generate(inputs, parameters, use_tqdm=False)
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        rounds.end(_found(ids, time.perf_counter() - started))
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
    """Token ids of the prompts of all rounds."""
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
