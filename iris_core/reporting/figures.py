"""The report's plots, as SVG that takes its colours from the page: dark where the page is dark.

Each plot is drawn in placeholder colours, which become CSS variables. Text stays text. Equal data gives equal SVG,
byte for byte.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iris_core.common.intervals import Interval

INK, MUTED, LINE = "#111213", "#818283", "#d1d2d3"
ANNOTATED, SYNTHETIC, ACCENT = "#2162c3", "#c36221", "#118273"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    ANNOTATED: "--annotated",
    SYNTHETIC: "--synthetic",
    ACCENT: "--accent",
    "#8a52c9": "--violet",
    "#a92b2b": "--red",
    "#8f7a1c": "--olive",
    "#5b6670": "--slate",
    "#c2408f": "--pink",
    "#3f8fb5": "--sky",
}
COMPARED = (ACCENT, *(color for color in VARIABLES if color not in (INK, MUTED, LINE, ACCENT)))
MARKERS = "osD^vPX<>"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "iris",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}
WIDTH, HEIGHT = 4.2, 2.7  # inches; small, so that texts stay readable on a phone
LARGE = {"width": 4.8, "height": 4.2}  # for many objectives, with their names above the plot
LEAST_PERCENT = 20  # percentage points on a benchmark's axis, so that noise looks small
MOST_NAMES = 12  # on an axis
MOST_POINTS = 1500  # of a curve; a longer one is thinned


def order_and_gap(orders: Sequence[float | None], gaps: Sequence[float]) -> str:
    """Two plots by iteration: the order α above, the gap D̂ that it measured below, without intervals."""

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
        names = [str(t) for t in range(len(orders))]
        top.plot(_numbers(orders), color=INK, marker="s", markersize=5)
        top.set_ylabel("order α")
        top.margins(y=0.25)
        _intervals(bottom, names, [Interval(value=gap, low=gap, high=gap) for gap in gaps], ACCENT)
        bottom.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
        bottom.set_ylabel("gap D̂ (nats)")
        bottom.set_xlabel("iteration")

    return _svg("gap", draw, height=HEIGHT * 1.25)


def by_model(name: str, names: Sequence[str], values: Sequence[Interval | None], label: str) -> str:
    """One quantity with its interval, for the initial model and after each iteration."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _intervals(axes, names, values, ACCENT)
        axes.set_ylabel(label)
        axes.set_xlabel("model after iteration")

    return _svg(name, draw)


def compared(name: str, names: Sequence[str], series: Mapping[str, Sequence[Interval | None]], label: str) -> str:
    """One quantity of several objectives by model: for each objective a line with intervals."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (title, values) in enumerate(series.items()):
            centers, bars = _bars(values)
            shift = 0.06 * (place - (len(series) - 1) / 2)
            axes.errorbar(
                [x + shift for x in range(len(names))],
                centers,
                yerr=bars,
                color=COMPARED[place % len(COMPARED)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                linewidth=1.2,
                elinewidth=0.9,
                label=title,
            )
        _name_models(axes, names)
        axes.set_ylabel(label)
        axes.set_xlabel("model after iteration")
        figure.legend(loc="outside upper left", ncols=3)

    return _svg(name, draw, **LARGE)


def frontier(models: Mapping[str, tuple[Sequence[Interval], Sequence[Interval]]], x: str, y: str) -> str:
    """Two quantities of several objectives against each other, from model to model; the last has its intervals.

    Args:
        models: for each objective, both quantities of its models.
        x: label of the first.
        y: label of the second.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (title, (xs, ys)) in enumerate(models.items()):
            color, marker = COMPARED[place % len(COMPARED)], MARKERS[place % len(MARKERS)]
            (at_x, wide), (at_y, high) = _bars(xs[-1:]), _bars(ys[-1:])
            path = [x.value for x in xs], [y.value for y in ys]
            axes.plot(*path, color=color, linewidth=1.0, marker=".", markersize=4)
            bars: dict[str, Any] = {"xerr": wide, "yerr": high, "elinewidth": 0.9}
            axes.errorbar(at_x, at_y, **bars, color=color, marker=marker, markersize=6, linestyle="", label=title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        figure.legend(loc="outside upper left", ncols=3)

    return _svg("frontier", draw, **LARGE)


def verdicts(names: Sequence[str], shares: Mapping[str, Sequence[float]]) -> str:
    """Shares of verdicts by iteration; `mixed` is a share of prompts, drawn dashed."""
    looks: dict[str, dict[str, Any]] = {
        "right": {"color": ANNOTATED, "marker": "o"},
        "wrong": {"color": SYNTHETIC, "marker": "s"},
        "undecided": {"color": MUTED, "marker": "D"},
        "mixed": {"color": ACCENT, "marker": "^", "linestyle": (0, (4, 1.5))},
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for title, values in shares.items():
            axes.plot([100 * value for value in values], label=title, markersize=5, **looks[title])
        _name_models(axes, names)
        axes.set_ylim(-4, 104)
        axes.margins(x=0.08)
        axes.set_ylabel("percent")
        axes.set_xlabel("iteration")
        figure.legend(loc="outside upper left", ncols=4, handlelength=2.2)

    return _svg("verdicts", draw)


def benchmark(name: str, names: Sequence[str], values: Sequence[Interval | None]) -> str:
    """A small plot of one benchmark's score in percent."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _intervals(axes, names, [value and value.scaled(100) for value in values], ACCENT)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.margins(x=0.12)
        low, high = axes.get_ylim()
        middle, half = (low + high) / 2, max(high - low, LEAST_PERCENT) / 2
        axes.set_ylim(max(middle - half, -2), min(middle + half, 102))

    return _svg(f"benchmark-{name}", draw, width=2.5, height=1.6)


def curves(name: str, series: Mapping[str, Sequence[float]], starts: Sequence[int], label: str) -> str:
    """Curves over all training steps, with a line where each iteration starts.

    Args:
        name: prefix of the SVG's ids.
        series: the curves; "annotated", and "synthetic" or "wrong", have colours and dashes of their own.
        starts: index of each iteration's first step.
        label: of the y axis.
    """
    looks: dict[str, dict[str, Any]] = {
        "annotated": {"color": ANNOTATED},
        **{side: {"color": SYNTHETIC, "linestyle": (0, (4, 1.5))} for side in ("synthetic", "wrong")},
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for title, values in series.items():
            steps = range(0, len(values), max(1, len(values) // MOST_POINTS))
            axes.plot(
                [s + 1 for s in steps],
                [values[s] for s in steps],
                label=title,
                **looks.get(title, {"color": ACCENT}),
            )
        for start in starts[1:]:
            axes.axvline(start + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_ylabel(label)
        axes.set_xlabel("optimiser step, all iterations" if len(starts) > 1 else "optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.02)
        figure.legend(loc="outside upper left", ncols=3, handlelength=2.2)

    return _svg(name, draw)


def _intervals(axes: Axes, names: Sequence[str], values: Sequence[Interval | None], color: str) -> None:
    """Points with error bars, joined by lines; a missing value leaves a hole."""
    centers, bars = _bars(values)
    axes.errorbar(
        range(len(names)),
        centers,
        yerr=bars,
        color=color,
        marker="o",
        markersize=5,
        capsize=3,
        elinewidth=1.2,
    )
    _name_models(axes, names)
    axes.margins(x=0.08, y=0.12)


def _name_models(axes: Axes, names: Sequence[str]) -> None:
    """Puts `names` at 0, 1, … of the x axis, or some of them where there are many."""
    shown = range(0, len(names), 1 + len(names) // MOST_NAMES)
    axes.set_xticks(shown, [names[i] for i in shown])


def _bars(values: Sequence[Interval | None]) -> tuple[list[float], list[list[float]]]:
    """Where the points are, and how far their error bars reach down and up."""
    centers = _numbers([value.value if value else None for value in values])
    low = [value.value - value.low if value else 0 for value in values]
    high = [value.high - value.value if value else 0 for value in values]
    return centers, [low, high]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _svg(name: str, draw: Callable[[Figure], None], width: float = WIDTH, height: float = HEIGHT) -> str:
    """The drawing as an SVG element: its ids start with `name`, its colours are those of the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=empty)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', text)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text
