"""Measures every row of the table that this machine allows, and writes README.md after each.

    python -m benchmarks [--only step,kernel] [--data ../shared/data] [--dtype bfloat16]
        [--repeats 5] [--out benchmarks]

What an interrupted run has measured is kept. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from pathlib import Path

from benchmarks import table
from iris_core.launch import CPU_SETTINGS

REPEATS = {"step": 5, "kernel": 5, "generation": 5, "evaluation": 5, "orchestration": 5}
NEEDS = {"step": "trl", "kernel": "trl", "generation": "vllm"}
ENVIRONMENT = {
    **CPU_SETTINGS,  # for both sides
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main() -> None:
    """Runs the benchmarks that are asked for."""
    from iris_core.demo.model import default_path

    parser = argparse.ArgumentParser(description="Measure IRIS against its peers.")
    parser.add_argument("--only", default=",".join(table.ROWS), help="rows, by commas")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/train.jsonl; none: made up")
    parser.add_argument("--model", type=Path, default=default_path(), help="a chat model's folder")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="of the training step; auto: what IRIS takes on this machine",
    )
    parser.add_argument("--repeats", type=int, help="of every row; none: each row's own number")
    parser.add_argument("--out", type=Path, default=table.HERE, help="folder of the page")
    arguments = parser.parse_args()
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    for row in arguments.only.split(","):
        if row not in table.ROWS:
            parser.error(f"--only: {row!r} is none of {', '.join(table.ROWS)}")
        if row in NEEDS and importlib.util.find_spec(NEEDS[row]) is None:
            print(f"{row}: left out, {NEEDS[row]} is not installed", flush=True)
            continue
        started = time.monotonic()
        repeats = arguments.repeats or REPEATS[row]
        result = measure(row, arguments, repeats)
        table.save(result, arguments.out)
        print(table.table([result]), flush=True)
        print(f"{row}: {time.monotonic() - started:.0f} s\n", flush=True)


def measure(row: str, arguments: argparse.Namespace, repeats: int) -> table.Result:
    """One row's result."""
    from benchmarks import evaluation, generation, kernel, orchestration, step

    model, data = arguments.model, arguments.data
    if row == "step":
        return step.measure(model, data, repeats, arguments.dtype)
    if row == "kernel":
        return kernel.measure(repeats)
    if row == "generation":
        return generation.measure(model, data, repeats)
    if row == "evaluation":
        return evaluation.measure(model, repeats)
    return orchestration.measure(repeats)


if __name__ == "__main__":
    main()
