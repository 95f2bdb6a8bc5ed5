"""A profile of our training step: its operators by `torch.profiler`, the longest first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.interleaved import Rounds

if TYPE_CHECKING:
    from benchmarks.trainers import Case

SHOWN_OPERATORS = 20
MATMULS = (  # parts of the names of PyTorch's operators and of GPU kernels
    "::mm",
    "::addmm",
    "::bmm",
    "::baddbmm",
    "linear",
    "::matmul",
    "gemm",
    "nvjet",
    "cutlass",
    "xmma",
)


def profile(rounds: Rounds, case: Case) -> list[dict[str, Any]]:
    """Operators of one forward and backward of ours, the longest first: name, calls and own milliseconds."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    from benchmarks.trainers import our_trainer

    with tempfile.TemporaryDirectory() as work:
        trainer, _ = our_trainer(case, Path(work))
        rows = trainer.train_dataset[0]
        for _ in range(3):  # until the process has allocated its memory
            trainer.training_step(trainer.model, rows)
        gpu = torch.cuda.is_available()
        with recorded(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as record:
            trainer.training_step(trainer.model, rows)
    own = "self_device_time_total" if gpu else "self_cpu_time_total"
    found = [
        {"name": event.key, "calls": event.count, "ms": getattr(event, own) / 1e3} for event in record.key_averages()
    ]
    return sorted(found, key=lambda operator: -operator["ms"])


def profile_table(operators: list[dict[str, Any]]) -> str:
    """The longest operators of `profile` as a Markdown table, and the share of matmuls."""
    total = sum(operator["ms"] for operator in operators)
    matmuls = sum(operator["ms"] for operator in operators if any(name in operator["name"] for name in MATMULS))
    rows = [
        f"| `{operator['name']}` | {operator['calls']} | {operator['ms']:,.1f} | {operator['ms'] / total:.1%} |"
        for operator in operators[:SHOWN_OPERATORS]
    ]
    return "\n".join(
        [
            f"One forward and backward of ours ({total:,.0f} ms under `torch.profiler`); matmuls are "
            f"{matmuls / total:.0%} of it.",
            "",
            "| operator | calls | own ms | share |",
            "|---|---|---|---|",
            *rows,
        ]
    )
