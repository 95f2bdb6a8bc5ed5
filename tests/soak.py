"""Repeats the training of a tiny model on two ranks on a busy machine, and reports runs that hang, fail or differ.

    python -m tests.soak --runs 30

The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import build_model, pairs
from tests.iris_core.training.on_ranks import Job, run
from tests.iris_core.training.tiny_specs import specs

RANKS = 2


def main() -> None:
    """Runs all, one after another."""
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--load", type=int, default=2, help="other processes that compute all the time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, busy(arguments.load):
        folder = Path(name)
        build_model(folder / "model")
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs()))
        spec = specs(folder / "inputs", folder / "model", folder / "pairs.jsonl")(
            method="full", learning_rate=1e-3, sharding="full"
        )
        results = [repeat(Job(spec, folder / str(number)), folder / "jobs.json") for number in range(arguments.runs)]
    different = sum(losses not in (None, results[0]) for losses in results)
    failed = results.count(None)
    print(f"{arguments.runs} runs: {failed} failed or hung, {different} with other losses than the first")
    sys.exit(bool(failed or different))


def repeat(job: Job, file: Path) -> list[float] | None:
    """The losses of a run; None if it failed, or took five minutes."""
    started = time.monotonic()
    try:
        run([job], RANKS, file)
    except subprocess.SubprocessError as error:
        print(f"{job.out.name}: {type(error).__name__} after {time.monotonic() - started:.0f} s", flush=True)
        return None
    print(f"{job.out.name}: {time.monotonic() - started:.0f} s", flush=True)
    return [json.loads(line)["loss"] for line in (job.out / "history.jsonl").read_text().splitlines()]


@contextmanager
def busy(processes: int):
    """Other processes compute inside."""
    started = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(processes)]
    for each in started:
        each.start()
    try:
        yield
    finally:
        for each in started:
            each.kill()


def _compute() -> None:
    while True:
        sum(range(100_000))


if __name__ == "__main__":
    main()
