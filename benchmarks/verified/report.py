"""The table of the comparison, with paired differences between arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.table import machine
from benchmarks.verified.measures import Measured
from iris_core.common.files import write_atomic
from iris_core.common.intervals import Floats, crossed, crossed_proportion
from iris_core.common.markup import table

COMPARED = (  # what is to be confirmed or refuted
    ("IRIS, plain", "SFT continued"),
    ("RFT", "SFT continued"),
    ("IRIS, verified", "SFT continued"),
    ("IRIS, verified", "RFT"),
)
HEADERS = ("model", "greedy, right", "sampled, right", "log-prob a token, nats", "steps")
DIFFERENCES = ("difference", "greedy, points", "of each seed", "sampled, points", "of each seed")


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
    about = (
        f"{seeds} seed{'s' * (seeds > 1)}, {seconds / 60:.0f} minutes on {machine()}. Each seed has its own prompts; "
        "intervals are 95 %, over all of them, for the models that were trained."
    )
    write_atomic(path, f"{about}\n\n{table(HEADERS, rows)}\n\n{table(DIFFERENCES, pairs)}\n")


def _row(arm: str, measured: Sequence[Measured]) -> list[str]:
    greedy, sampled, nats, tokens = _together(measured)
    shares = [crossed_proportion(share[None]) for share in (greedy, sampled)]
    likelihood = crossed(nats[None], tokens[None])
    steps = ", ".join(str(one.steps) for one in measured)
    return [arm, *(f"{share:.3f}" for share in shares), f"{likelihood:.3f}", steps]


def _difference(one: str, other: str, found: Mapping[str, Sequence[Measured]]) -> list[str]:
    cells = [f"{one} − {other}"]
    for right in ("greedy", "sampled"):
        seeds = [100 * (getattr(a, right) - getattr(b, right)) for a, b in zip(found[one], found[other], strict=True)]
        together = np.concatenate(seeds)[None]
        cells += [
            f"{crossed(together, np.ones_like(together)):+.1f}",
            ", ".join(f"{seed.mean():+.1f}" for seed in seeds),
        ]
    return cells


def _together(measured: Sequence[Measured]) -> list[Floats]:
    """Greedy and sampled answers, log-probs and tokens, of the prompts of all seeds; shape [seeds · pairs] each."""
    return [np.concatenate(each) for each in zip(*(one[:4] for one in measured), strict=True)]
