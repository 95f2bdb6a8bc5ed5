"""Log-probabilities from hidden states: time and memory of forward and backward, over vocabulary sizes.

The peers are fp32 `log_softmax` and `gather` on the full logits, and TRL's chunked function. Liger's kernels and
cut-cross-entropy are written in Triton and run only on GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.interleaved import Rounds, Run, peak_bytes, reset_peak
from benchmarks.table import Line, Result, spread

TOKENS, HIDDEN = 2048, 576
VOCABULARIES = {"32k": 32_000, "49k": 49_152, "152k": 151_936, "256k": 256_000}
TARGET = "152k"
TRL_CHUNK = 32_768  # default of its trainers
SWEPT = 2  # rounds of a row without a target


def measure(repeats: int) -> Result:
    """The lines of memory and time at 152k, and the sweep over vocabulary sizes."""
    from iris_core.modeling.loading import resolve_dtype

    dtype = resolve_dtype("auto")
    rows: list[str] = []
    times: dict[str, dict[str, list[float]]] = {}
    memory: dict[str, dict[str, float]] = {}
    for name, size in VOCABULARIES.items():
        rounds = repeats if name == TARGET else SWEPT
        times[name], memory[name] = _compare(["ours", "full"], size, dtype, rounds)
        rows.append(_row(name, dtype, times[name], memory[name]))
    chunked, chunked_memory = _compare(["ours", "trl"], VOCABULARIES[TARGET], dtype, SWEPT)
    single, single_memory = _compare(["ours", "full"], VOCABULARIES[TARGET], "float32", SWEPT)
    rows.append(_row(TARGET, "float32", single, single_memory))
    title = f"log-prob kernel, V = {TARGET}"
    ours, full = memory[TARGET]["ours"], memory[TARGET]["full"]
    lines = [
        Line(f"{title}: memory", "MB", [ours], [full], "≤", 1 / 20),
        Line(f"{title}: time", "s", times[TARGET]["ours"], times[TARGET]["full"], "≤", 1.0),
        Line(f"{title}: memory against TRL's", "MB", [chunked_memory["ours"]], [chunked_memory["trl"]]),
        Line(f"{title}: time against TRL's", "s", chunked["ours"], chunked["trl"]),
        Line("log-prob kernel: memory at V = 256k to V = 32k", "MB", [memory["256k"]["ours"]], [memory["32k"]["ours"]]),
    ]
    return Result("kernel", lines, _text(rows))


def run_kernel(rounds: Rounds, kind: str, vocabulary: int, dtype: str, repeats: int) -> float:
    """Times forward and backward in each round; returns the peak of memory above the inputs, in MB."""
    import torch

    from iris_core.modeling.loading import device

    torch.manual_seed(0)
    placed = {"dtype": getattr(torch, dtype), "device": device()}
    hidden = torch.randn(TOKENS, HIDDEN, **placed).requires_grad_()
    weight = torch.randn(vocabulary, HIDDEN, **placed).mul_(0.05)
    targets = torch.randint(vocabulary, (TOKENS,), device=device())
    function = function_of(kind)
    function(hidden[:8], weight, targets[:8]).sum().backward()
    before = reset_peak()
    for _ in range(repeats):
        hidden.grad = None
        rounds.begin()
        started = time.perf_counter()
        function(hidden, weight, targets).sum().backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rounds.end(time.perf_counter() - started)
    return (peak_bytes() - before) / 1e6


def function_of(kind: str) -> Callable[..., Any]:
    """The function of hidden states, lm_head weight and targets: "ours", "full" or "trl"."""
    if kind == "ours":
        from iris_core.modeling.kernels.logprobs import token_logprobs

        return token_logprobs
    if kind == "trl":
        from trl.kernels import ChunkedLogProbFunction

        return lambda hidden, weight, targets: ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, ("log_probs",)
        )[0]
    return lambda hidden, weight, targets: (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])


def _compare(
    kinds: list[str], vocabulary: int, dtype: str, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each round and megabytes, by kind, after one warm-up round."""
    arguments = {"vocabulary": vocabulary, "dtype": dtype, "repeats": repeats + 1}
    runs = {kind: Run(run_kernel, kind=kind, **arguments) for kind in kinds}
    rounds = [{kind: runs[kind].round() for kind in kinds} for _ in range(repeats + 1)][1:]
    memory = {kind: runs[kind].result() for kind in kinds}
    return {kind: [values[kind] for values in rounds] for kind in kinds}, memory


def _row(name: str, dtype: str, times: dict[str, list[float]], memory: dict[str, float]) -> str:
    cells = [f"{spread(times[kind])} s, {memory[kind]:,.0f} MB" for kind in times]
    ratio = memory["full"] / memory["ours"]
    faster = median(times["full"]) / median(times["ours"])
    return f"| {name}, {dtype} | {' | '.join(cells)} | {ratio:.0f}× less, {faster:.2f}× as fast |"


def _text(rows: list[str]) -> str:
    return "\n".join(
        [
            f"Forward and backward of {TOKENS} response tokens of hidden size {HIDDEN}, the lm_head frozen (LoRA); "
            "memory is the process's peak above its inputs. Liger's kernels and cut-cross-entropy are Triton: "
            "they need a GPU.",
            "",
            "| vocabulary | ours | fp32 log_softmax + gather | ours against it |",
            "|---|---|---|---|",
            *rows,
        ]
    )
