"""Verified self-play on a real model: what verification adds to supervised fine-tuning, and self-play to that.

    python -m benchmarks.verified [--seeds 3] [--jobs 2] [--minutes 60] [--out build/verified]

SmolLM2-135M-Instruct learns the demo's house style by supervised fine-tuning until that no longer helps. From there it
continues with each arm (`arms.ARMS`) for two iterations. Seeds run side by side, each on its share of the cores. No new
seed begins after `--minutes`. What an interrupted run has finished is kept. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from benchmarks.verified.measures import Measured
from benchmarks.verified.report import write_report
from benchmarks.verified.seeds import run_seed, take_cores
from iris_core.common import gpus


def main() -> None:
    """Runs every arm for each seed, and writes the report after each."""
    from iris_core.demo.model import ensure

    parser = argparse.ArgumentParser("python -m benchmarks.verified", description="Compare verified self-play.")
    parser.add_argument("--seeds", type=int, default=3, help="most seeds")
    parser.add_argument("--jobs", type=int, help="seeds side by side (default: one for each core; 1 with a GPU)")
    parser.add_argument("--minutes", type=float, default=60, help="no new seed begins later")
    parser.add_argument("--out", type=Path, default=Path("build/verified"), help="folder for stores and results")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model, out, began = ensure(), arguments.out.absolute(), time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(arguments.jobs or (1 if gpus.installed() else len(cores)), arguments.seeds, len(cores))
    context = multiprocessing.get_context("spawn")
    shares: SimpleQueue[list[int]] = context.SimpleQueue()
    for job in range(jobs):
        shares.put(cores[job::jobs])
    results: dict[int, dict[str, Measured]] = {}
    with ProcessPoolExecutor(jobs, context, take_cores, (shares,)) as pool:
        last_start = began + 60 * arguments.minutes
        seeds = {pool.submit(run_seed, seed, model, out, last_start): seed for seed in range(arguments.seeds)}
        for finished in as_completed(seeds):
            if found := finished.result():
                results[seeds[finished]] = found
                write_report([results[seed] for seed in sorted(results)], out / "report.md", time.monotonic() - began)
    print((out / "report.md").read_text(encoding="utf-8") if results else "no seed has begun")


if __name__ == "__main__":
    main()
