"""One seed of the comparison, in a process of its own."""

from __future__ import annotations

import os
import time
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from benchmarks.verified.arms import ARMS, arm_experiment, start_experiment, test_experiment, write_data
from benchmarks.verified.loop import answers, iterations, prepare, samples
from benchmarks.verified.measures import Measured, best, heldout_only, logprobs, merge
from iris_core.store import Policy


def take_cores(shares: SimpleQueue[list[int]]) -> None:
    """Keeps this process, and those that it starts, to its share of the cores."""
    os.sched_setaffinity(0, shares.get())


def run_seed(seed: int, chat_model: Path, out: Path, last_start: float) -> dict[str, Measured] | None:
    """The start and each arm's last model, measured on the test pairs; None if it is later than `last_start`."""
    if time.monotonic() > last_start:
        return None
    data, store = out / f"data-{seed}", out / "store"
    write_data(seed, data)
    experiment = start_experiment(seed, chat_model, data, store)
    prepared = prepare(experiment)
    trained = [each.policy for each in iterations(experiment, prepared)]
    start = merge(best(experiment, prepared, trained), f"start-{seed}", out)
    test = test_experiment(seed, start, data, store)
    checked = prepare(test)
    only = heldout_only(checked, out / f"test-{seed}.parquet")

    def measure(policy: Policy, steps: int) -> Measured:
        scored = logprobs(only, policy)
        return Measured.read(answers(test, checked, policy), samples(test, only, policy), scored, steps)

    found = {"SFT, the start": measure(checked.initial, 0)}
    for arm in ARMS:
        loop = arm_experiment(arm, seed, start, data, store)
        rounds = iterations(loop, prepare(loop))
        found[arm] = measure(rounds[-1].policy, sum(each.steps for each in rounds))
        print(f"{loop.name}: greedy {found[arm].greedy.mean():.3f}", flush=True)
    return found
