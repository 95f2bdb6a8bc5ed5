"""The log-prob kernel on a GPU: time and memory of forward and backward, over vocabulary sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.interleaved import Rounds
from benchmarks.kernel import VOCABULARIES
from benchmarks.table import Line, spread

TOKENS = 8192
HIDDEN_SIZES = {"32k": 4096, "49k": 576, "152k": 2048, "256k": 2048}
TARGET = "152k"
TITLES = {
    "ours": "ours",
    "full": "fp32 log_softmax + gather",
    "trl": "TRL's, chunked",
    "liger": "Liger's",
    "cce": "cut-cross-entropy",
}
Measured = tuple[list[float], float]


def measure(rounds: Rounds, repeats: int) -> tuple[list[Line], str]:
    """Lines for the table, and all sizes as Markdown; the lines skip peers that are not installed or fail."""
    found = {vocabulary: {kind: _measured(kind, vocabulary, repeats) for kind in TITLES} for vocabulary in VOCABULARIES}
    rows = [
        "| vocabulary, hidden size | " + " | ".join(TITLES.values()) + " |",
        "|---" * (len(TITLES) + 1) + "|",
        *(
            f"| {vocabulary}, {HIDDEN_SIZES[vocabulary]} | {' | '.join(map(_cell, kinds.values()))} |"
            for vocabulary, kinds in found.items()
        ),
    ]
    kinds = found[TARGET]
    own = kinds["ours"]
    assert not isinstance(own, str)
    lines = []
    for kind, other in kinds.items():
        if kind == "ours" or isinstance(other, str):
            continue
        bound: Any = ("≤", 1 / 20, 1.0) if kind == "full" else (None, 1.0, 1.0)
        title = f"GPU log-prob kernel, V = {TARGET}, against {TITLES[kind]}"
        lines += [
            Line(f"{title}: memory", "MB", [own[1]], [other[1]], bound[0], bound[1]),
            Line(f"{title}: time", "ms", own[0], other[0], bound[0], bound[2]),
        ]
    head = (
        f"Forward and backward of {TOKENS:,} response tokens in bf16, the lm_head frozen where a kernel can use that; "
        "milliseconds, and megabytes allocated above the inputs."
    )
    return lines, head + "\n\n" + "\n".join(rows)


def seconds_each(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repetition on the GPU, after three warm-up repetitions."""
    import torch

    for _ in range(3):
        work()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return found


def _measured(kind: str, vocabulary: str, repeats: int) -> Measured | str:
    """Milliseconds of each repetition and megabytes, or the error."""
    import torch

    torch.manual_seed(0)
    size, placed = HIDDEN_SIZES[vocabulary], {"dtype": torch.bfloat16, "device": "cuda"}
    hidden = torch.randn(TOKENS, size, **placed).requires_grad_()
    weight = torch.randn(VOCABULARIES[vocabulary], size, **placed).mul_(0.05)
    targets = torch.randint(len(weight), (TOKENS,), device="cuda")

    try:
        function = _function(kind)

        def work() -> None:
            hidden.grad = None
            function(hidden, weight, targets).sum().backward()

        work()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        times = [1e3 * seconds for seconds in seconds_each(work, repeats)]
        return times, (torch.cuda.max_memory_allocated() - before) / 1e6
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:80]


def _function(kind: str) -> Callable[..., Any]:
    if kind == "liger":
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        return lambda hidden, weight, targets: LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, targets, None, None, -100, 0.0, 0.0, "none"
        )[0]
    if kind == "cce":
        from cut_cross_entropy import linear_cross_entropy

        return lambda hidden, weight, targets: linear_cross_entropy(hidden, weight, targets, reduction="none")
    from benchmarks import kernel

    return kernel.function_of(kind)


def _cell(measured: Measured | str) -> str:
    if isinstance(measured, str):
        return measured
    times, megabytes = measured
    return f"{spread(times)} ms, {megabytes:,.0f} MB"
