"""The table of the comparison, with paired differences between arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.table import machine
from benchmarks.verified.measures import Measured
from iris_core.common.files import write_atomic
from iris_core.common.intervals import Floats, Interval, crossed, crossed_proportion
from iris_core.common.markup import table

COMPARED = (  # what is to be confirmed or refuted
    ("IRIS, plain", "SFT continued"),
    ("RFT", "SFT continued"),
    ("IRIS, verified", "SFT continued"),
    ("IRIS, verified", "RFT"),
)
HEADERS = ("model", "greedy, right", "sampled, right", "log-prob a token, nats", "steps")
DIFFERENCES = ("difference", "greedy, points", "sampled, points")


def write_report(results: Sequence[Mapping[str, Measured]], path: Path, seconds: float) -> None:
    """Writes the tables as Markdown.

    Args:
        results: each arm's last model, for each seed.
        path: the file.
        seconds: that it took.
    """
    seeds = len(results)
    found = {arm: [result[arm] for result in results] for arm in results[0]}
    rows = [_row(arm, measured) for arm, measured in found.items()]
    pairs = [_difference(one, other, found) for one, other in COMPARED]
    about = f"{seeds} seed{'s' * (seeds > 1)}, {seconds / 60:.0f} minutes on {machine()}. Intervals are 95 %."
    write_atomic(path, f"{about}\n\n{table(HEADERS, rows)}\n\n{table(DIFFERENCES, pairs)}\n")


def _row(arm: str, measured: Sequence[Measured]) -> list[str]:
    likelihood = crossed(_stack(measured, lambda one: one.logprob), _stack(measured, lambda one: one.tokens))
    shares = [
        crossed_proportion(_stack(measured, lambda one: one.greedy)),
        crossed_proportion(_stack(measured, lambda one: one.sampled)),
    ]
    steps = ", ".join(str(one.steps) for one in measured)
    return [arm, *(f"{share:.3f}" for share in shares), f"{likelihood:.3f}", steps]


def _difference(one: str, other: str, found: Mapping[str, Sequence[Measured]]) -> list[str]:
    def points(get: Callable[[Measured], Floats]) -> Interval:
        values = _stack(found[one], get) - _stack(found[other], get)
        return crossed(100 * values, np.ones_like(values))

    return [f"{one} − {other}", f"{points(lambda m: m.greedy):+.1f}", f"{points(lambda m: m.sampled):+.1f}"]


def _stack(measured: Sequence[Measured], get: Callable[[Measured], Floats]) -> Floats:
    """Shape [seeds, pairs]."""
    return np.stack([get(one) for one in measured])
