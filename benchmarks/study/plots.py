"""The study's plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study.results import Interval, Result

STYLE = {
    "svg.hashsalt": "iris",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.facecolor": "white",
}


def iterations(file: Path, results: Mapping[str, Result]) -> None:
    """Both divergences after each iteration in the best cell, with intervals over seeds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, measure, label in zip(
            axes, ("forward", "reverse"), ("KL(p_data‖p_θ)", "KL(p_θ‖p_data)"), strict=True
        ):
            for name, result in results.items():
                spreads = [Interval.of(values) for values in result.at_best(measure).T]
                _curve(axis, range(len(spreads)), spreads, name)
            start, end = (np.mean([result.at_best(measure)[:, i] for result in results.values()]) for i in (0, -1))
            axis.set_ylim(0.7 * end, 1.15 * start)  # values above belong to collapsed runs
            axis.set_xlabel("iterations done")
            axis.set_ylabel(f"{label}, nats")
        axes[0].legend()
        _save(figure, file)


def rates(file: Path, results: Mapping[str, Result], highest: float) -> None:
    """KL after the last iteration by learning rate, each with the β that validation prefers there.

    Args:
        file: SVG to write.
        results: by name.
        highest: end of the axis; values above belong to diverged runs.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        axis = figure.subplots()
        for name, result in results.items():
            spreads = by_rate(result)
            _curve(axis, list(spreads), list(spreads.values()), name)
        axis.set_xscale("log")
        lowest = min(result.final.mean() for result in results.values())
        axis.set_ylim(0.9 * lowest, highest)
        axis.set_xlabel("learning rate")
        axis.set_ylabel("KL(p_data‖p_θ) after the last iteration, nats")
        axis.legend()
        _save(figure, file)


def by_rate(result: Result) -> dict[float, Interval]:
    """KL after the last iteration at each learning rate, with the β that validation prefers at that rate."""
    validation = np.nan_to_num(result.measures["validation"][:, :, -1].mean(axis=1), nan=-np.inf)
    best: dict[float, int] = {}
    for cell, (rate, _) in enumerate(result.job.cells):
        if rate not in best or validation[cell] > validation[best[rate]]:
            best[rate] = cell
    return {rate: Interval.of(result.measures["forward"][cell, :, -1]) for rate, cell in best.items()}


def _curve(axis: Axes, x: Sequence[float], spreads: list[Interval], name: str) -> None:
    values = np.array(spreads)
    lines = axis.plot(x, values[:, 0], marker="o", markersize=3, linewidth=1.4, label=name)
    axis.fill_between(x, values[:, 1], values[:, 2], color=lines[0].get_color(), alpha=0.12)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
