"""Measures each row of the table that this machine can measure, and writes README.md after each.

    python -m benchmarks [--only step,kernel] [--data ../shared/data] [--dtype bfloat16]
        [--repeats 5] [--out benchmarks]

What an interrupted run has measured is kept. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from pathlib import Path

from benchmarks import table
from iris_core.execution.launch import CPU_SETTINGS

REPEATS = 5
NEEDS = {"step": "trl", "kernel": "trl", "generation": "vllm", "gpu": "trl"}
ENVIRONMENT = {
    **CPU_SETTINGS,  # for both runs
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main() -> None:
    """Runs the requested benchmarks."""
    from iris_core.demo.model import default_path

    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure IRIS against its peers.")
    parser.add_argument("--only", default=",".join(table.ROWS), help="rows, separated by commas")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/train.jsonl; without it pairs are made up")
    parser.add_argument("--model", type=Path, default=default_path(), help="a chat model's folder")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="of the training step; auto: the dtype that IRIS uses on this machine",
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of every row")
    parser.add_argument("--out", type=Path, default=table.HERE, help="folder of the page")
    arguments = parser.parse_args()
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    for row in arguments.only.split(","):
        if row not in table.ROWS:
            parser.error(f"--only: {row!r} is none of {', '.join(table.ROWS)}")
        if row in NEEDS and importlib.util.find_spec(NEEDS[row]) is None:
            print(f"{row}: skipped, {NEEDS[row]} is not installed", flush=True)
            continue
        if row == "gpu" and not _has_gpu():
            print("gpu: skipped, there is no GPU", flush=True)
            continue
        started = time.monotonic()
        result = measure(row, arguments)
        table.save(result, arguments.out)
        print(table.table([result]), flush=True)
        print(f"{row}: {time.monotonic() - started:.0f} s\n", flush=True)


def measure(row: str, arguments: argparse.Namespace) -> table.Result:
    """One row's result."""
    from benchmarks import evaluation, generation, gpu, kernel, orchestration, step, verification

    model, data, repeats = arguments.model, arguments.data, arguments.repeats
    if row == "step":
        return step.measure(model, data, repeats, arguments.dtype)
    if row == "kernel":
        return kernel.measure(repeats)
    if row == "generation":
        return generation.measure(model, data, repeats)
    if row == "verification":
        return verification.measure(repeats)
    if row == "evaluation":
        return evaluation.measure(model, repeats)
    if row == "gpu":
        return gpu.measure(repeats)
    return orchestration.measure(repeats)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
