"""The report's plots, as SVG that takes its colours from the page: dark where the page is dark.

Each plot is drawn in placeholder colours which become CSS variables, with its texts left as text. Equal data gives equal
SVG, byte for byte.
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

INK, MUTED, LINE = "#111213", "#818283", "#d1d2d3"
ANNOTATED, SYNTHETIC, ACCENT = "#2162c3", "#c36221", "#118273"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    ANNOTATED: "--annotated",
    SYNTHETIC: "--synthetic",
    ACCENT: "--accent",
}
COMPARED = ("#118273", "#2162c3", "#c36221", "#8a52c9", "#a92b2b", "#8f7a1c", "#5b6670")
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
LEAST_PERCENT = 20  # percentage points on a benchmark's axis: noise should not look like news
MOST_NAMES = 12  # on an axis
MOST_POINTS = 1500  # of a curve; a longer one is thinned

Spread = Sequence[float] | None  # value, low, high


def order_and_gap(orders: Sequence[float | None], gaps: Sequence[float]) -> str:
    """The order α of each iteration, above the gap D̂ it measured, an estimate without an interval."""

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
        names = [str(t) for t in range(len(orders))]
        top.plot(_numbers(orders), color=INK, marker="s", markersize=5)
        top.set_ylabel("order α")
        top.margins(y=0.25)
        _spreads(bottom, names, [(gap, gap, gap) for gap in gaps], ACCENT)
        bottom.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
        bottom.set_ylabel("gap D̂ (nats)")
        bottom.set_xlabel("iteration")

    return _svg("gap", draw, height=HEIGHT * 1.25)


def by_model(name: str, names: Sequence[str], values: Sequence[Spread], label: str) -> str:
    """One quantity with its interval, for the initial model and after each iteration."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _spreads(axes, names, values, ACCENT)
        axes.set_ylabel(label)
        axes.set_xlabel("model after iteration")

    return _svg(name, draw)


def compared(name: str, names: Sequence[str], series: Mapping[str, Sequence[Spread]], label: str) -> str:
    """One quantity of several objectives, a line with intervals each, beside one another at every model."""

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
                marker="osD^vPX"[place % 7],
                markersize=4,
                linewidth=1.2,
                elinewidth=0.9,
                label=title,
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(label)
        axes.set_xlabel("model after iteration")
        figure.legend(loc="outside right upper")

    return _svg(name, draw, width=WIDTH * 1.5, height=HEIGHT * 1.25)


def benchmark(name: str, names: Sequence[str], values: Sequence[Spread]) -> str:
    """One benchmark's score in percent, small, with one standard error to each side."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _spreads(axes, names, [None if v is None else [100 * x for x in v] for v in values], ACCENT)
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
        series: a curve each; one called "annotated" or "synthetic" has that side's colour and dash.
        starts: index of each iteration's first step.
        label: of the y axis.
    """
    looks: dict[str, dict[str, Any]] = {
        "annotated": {"color": ANNOTATED},
        "synthetic": {"color": SYNTHETIC, "linestyle": (0, (4, 1.5))},
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


def _spreads(axes: Axes, names: Sequence[str], values: Sequence[Spread], color: str) -> None:
    """Points with error bars, joined; what is missing leaves a hole."""
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
    shown = range(0, len(names), 1 + len(names) // MOST_NAMES)
    axes.set_xticks(shown, [names[i] for i in shown])
    axes.margins(x=0.08, y=0.12)


def _bars(values: Sequence[Spread]) -> tuple[list[float], list[list[float]]]:
    """Where the points are, and how far their error bars reach down and up."""
    centers = _numbers([value[0] if value else None for value in values])
    low = [center - value[1] if value else 0 for center, value in zip(centers, values, strict=True)]
    high = [value[2] - center if value else 0 for center, value in zip(centers, values, strict=True)]
    return centers, [low, high]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _svg(name: str, draw: Callable[[Figure], None], width: float = WIDTH, height: float = HEIGHT) -> str:
    """What `draw` draws, as an SVG element whose ids start with `name` and whose colours are the page's."""
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
