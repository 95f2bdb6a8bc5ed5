"""The training step and the log-prob kernel on a GPU, against TRL, Liger's kernels and cut-cross-entropy.

Models have the shapes of well-known ones and random weights, since speed does not depend on the weights. The share of
the GPU's peak counts the matmuls that a step needs: the packed tokens by each layer and the response tokens by the
lm_head, forward and backward, without attention and without the adapter.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from benchmarks import gpu_kernel
from benchmarks.data import GSM8K_LIKE, LONG, Sizes
from benchmarks.interleaved import Rounds, Run, RunFailed, alone
from benchmarks.profile_of_step import profile, profile_table
from benchmarks.table import Line, Result, spread
from benchmarks.trainers import RANK, Case, Setting, order_of, ours, peer, tokens_of

WARM_UP = 3  # steps: TorchInductor and Triton compile again for the first other lengths
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-3B": (
        "qwen2",
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Mistral-7B": (
        "mistral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "tie_word_embeddings": False,
            "sliding_window": None,
        },
    ),
}


@dataclass(frozen=True)
class Trial:
    """One comparison with TRL.

    Attributes:
        shape: of the model, one of `SHAPES`.
        method: "lora" or "full".
        sizes: lengths of the texts, and their name.
        batch_size: pairs in an optimiser batch.
        tokens_per_row: our packing budget.
        settings: of the peer.
    """

    shape: str
    method: Literal["lora", "full"]
    sizes: tuple[Sizes, str]
    batch_size: int
    tokens_per_row: int
    settings: tuple[Setting, ...]

    def __str__(self) -> str:
        method = "LoRA" if self.method == "lora" else "full"
        return f"{self.shape}, {method}, {self.sizes[1]}"


def _liger(*micro_batches: int, autocast: bool = False) -> list[Setting]:
    return [Setting(size, autocast=autocast, liger=True) for size in micro_batches]


SHORT, FULL_LENGTH = (GSM8K_LIKE, "GSM8K's lengths"), (LONG, "2,048 tokens a pair")
TRIALS = (
    Trial(
        "SmolLM2-135M",
        "lora",
        SHORT,
        32,
        16384,
        (Setting(32), *_liger(32, 8), *_liger(32, autocast=True)),
    ),
    Trial(
        "SmolLM2-135M",
        "full",
        SHORT,
        32,
        16384,
        (Setting(32, autocast=True), *_liger(32, 8, autocast=True)),
    ),
    Trial(
        "Qwen2.5-3B",
        "lora",
        SHORT,
        16,
        8192,
        (Setting(8), *_liger(8, 4)),
    ),
    Trial("Mistral-7B", "lora", FULL_LENGTH, 8, 8192, (*_liger(4, 2), Setting(2))),
)


def measure(repeats: int) -> Result:
    """The lines of each trial and of the log-prob kernel."""
    peak = alone(peak_of_matmuls)
    lines, rows, tried = [], [], []
    with tempfile.TemporaryDirectory() as work:
        for trial in TRIALS:
            found, row, settings = _compare(trial, Path(work), repeats, peak)
            lines += found
            rows.append(row)
            tried += settings
        longest = TRIALS[-1]
        operators = alone(profile, case=_case(longest, _build(longest.shape, Path(work)), WARM_UP))
    kernel, sweep = alone(gpu_kernel.measure, repeats=repeats)
    return Result("gpu", [*lines, *kernel], _text(rows, tried, peak, longest, operators, sweep))


def peak_of_matmuls(rounds: Rounds) -> float:
    """bf16 TFLOP/s of a matmul of two random 8,192 x 8,192 matrices, the median of ten."""
    import torch

    size = 8192
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = gpu_kernel.seconds_each(lambda: one @ other, 10)
    return 2 * size**3 / median(seconds) / 1e12


def _compare(trial: Trial, work: Path, repeats: int, peak: float) -> tuple[list[Line], str, list[str]]:
    """A trial's lines for the table, its row of shares of the peak, and a row for each of TRL's settings."""
    case = _case(trial, _build(trial.shape, work), WARM_UP + repeats)
    with ExitStack() as stack:
        runs = _started(case, trial.settings, stack)
        rounds = [{name: run.round() for name, run in runs.items()} for _ in range(case.batches)]
        memory = {name: run.result() / 1e9 for name, run in runs.items()}
    speeds = {name: [values[name] for values in rounds[WARM_UP:]] for name in runs}
    best = max((name for name in runs if name is not None), key=lambda name: median(speeds[name]))
    lines = [
        Line(f"GPU step, {trial}", "response tokens/s", speeds[None], speeds[best], "≥", 1.5),
        Line(f"GPU peak memory, {trial}", "GB", [memory[None]], [memory[best]], "≤", 0.6),
    ]
    tera, tokens = _work(case)
    reached = [tera * speed for speed in speeds[None]]
    row = (
        f"| {trial} | {tokens:,.0f} | {median(speeds[None]):,.0f} | {spread(reached)} | "
        f"{median(reached) / peak:.0%} | {memory[None]:.1f} GB |"
    )
    settings = [
        f"| {trial} | {name} | {spread(speeds[name])} | {memory[name]:.1f} GB |" for name in runs if name is not None
    ]
    return lines, row, settings


def _started(case: Case, settings: tuple[Setting, ...], stack: ExitStack) -> dict[Setting | None, Run]:
    """Our run (None) and TRL's in each setting that starts; they set up at the same time."""

    def start(setting: Setting | None) -> Run | None:
        try:
            return Run(ours, case=case) if setting is None else Run(peer, case=case, setting=setting)
        except RunFailed as failure:
            if setting is None:
                raise
            print(f"{setting}: {str(failure).strip().splitlines()[-1]}", flush=True)
            return None

    names = (None, *settings)
    with ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(start, names), strict=True))
    return {name: stack.enter_context(side) for name, side in found.items() if side is not None}


def _case(trial: Trial, model: Path, batches: int) -> Case:
    return Case(
        model,
        "bfloat16",
        batches,
        batch_size=trial.batch_size,
        sizes=trial.sizes[0],
        tokens_per_row=trial.tokens_per_row,
        method=trial.method,
    )


def _build(shape: str, work: Path) -> Path:
    """Folder of a randomly initialised model of `shape`, created once."""
    folder = work / shape
    if not folder.exists():
        alone(initialise, shape=shape, folder=folder)
    return folder


def initialise(rounds: Rounds, shape: str, folder: Path) -> None:
    """Saves a model of `shape` with random bf16 weights and a small tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from iris_core.modeling.loading import device
    from tests.conftest import build_tokenizer

    kind, sizes = SHAPES[shape]
    config = AutoConfig.for_model(kind, **sizes, bos_token_id=0, eos_token_id=2, pad_token_id=0)
    with device():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    build_tokenizer(folder)


def _work(case: Case) -> tuple[float, float]:
    """TFLOP of matmuls per response token, and the mean tokens of a step's rows.

    Forward and the gradient of a layer's input are a matmul each, of 2 FLOP per weight; a trained weight has a third.
    """
    from transformers import AutoConfig

    config, groups = AutoConfig.from_pretrained(case.model), tokens_of(case)
    head = config.hidden_size * config.vocab_size
    size = config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * (size * heads + 3 * config.intermediate_size)
    each = 4 if case.method == "lora" else 6
    batches = [[groups[index] for index in batch] for batch in order_of(case)[WARM_UP:]]
    tokens = mean(sum(map(len, batch)) for batch in batches)
    responses = mean(sum(len(r) for group in batch for r in group.responses) for batch in batches)
    total = each * (layer * config.num_hidden_layers * tokens + head * responses)
    return total / responses / 1e12, tokens


def _text(
    rows: list[str], tried: list[str], peak: float, longest: Trial, operators: list[dict[str, Any]], sweep: str
) -> str:
    lines = "\n".join
    return f"""bf16, LoRA r = {RANK} on all linear layers or all weights, AdamW, after {WARM_UP} warm-up steps; a step \
is forward, backward and update of one optimiser batch. Memory is PyTorch's peak allocation. The share is of the \
{peak:.0f} TFLOP/s that a matmul of two 8,192 × 8,192 matrices reaches here.

| trial | tokens per step | response tokens/s | TFLOP/s | share | peak memory |
|---|---|---|---|---|---|
{lines(rows)}

TRL's settings, each with `precompute_ref_log_probs`, without gradient checkpointing, SDPA attention; the fastest is \
the peer.

| trial | setting | response tokens/s | peak memory |
|---|---|---|---|
{lines(tried)}

### Profile on the GPU: {longest}

{profile_table(operators)}

### Kernel on the GPU

{sweep}"""
