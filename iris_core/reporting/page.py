"""The report of an experiment: one HTML file that needs nothing else, and its figures as data beside it.

    from iris_core.reporting.page import write_report
    write_report(Store(Path("iris-store"), "demo"))     # <store>/demo/report.html, report.json

It works on an unfinished experiment, asks no server for anything, and is the same file for the same store.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from iris_core.common.files import write_atomic
from iris_core.common.markup import plain
from iris_core.evaluation.benchmarks import BENCHMARKS
from iris_core.reporting import figures
from iris_core.reporting.content import collect
from iris_core.store import Store

TEMPLATES = Path(__file__).with_name("templates")


class Plot(NamedTuple):
    """A plot of the report: its picture, what it shows, and the same in words for those who do not see it."""

    title: str
    svg: Markup
    caption: str
    alt: str


def write_report(store: Store) -> Path:
    """Writes `report.html` and `report.json` into the experiment's folder and returns the former."""
    data = collect(store)
    write_atomic(store.home / "report.json", json.dumps(_finite(data), indent=1, ensure_ascii=False))
    write_atomic(store.home / "report.html", render(data))
    return store.home / "report.html"


def pages() -> jinja2.Environment:
    """The templates of pages, in which all that is put is text, without control characters."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_as_text,
    )


def render(data: dict[str, Any]) -> str:
    """The page, from the data alone."""
    environment = pages()
    environment.filters |= {
        "minutes": _minutes,
        "size": _size,
        "json": lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    }
    page = environment.get_template("report.html.j2")
    return page.render(
        **data,
        outcome=outcome_plots(data),
        training=training_plots(data),
        scores=benchmark_plots(data),
        label=_label(data),
    )


def _as_text(value: Any) -> Any:
    markup = isinstance(value, Markup) or not isinstance(value, str)
    return value if markup else plain(value)


def outcome_plots(data: dict[str, Any]) -> list[Plot]:
    """What the iterations did to the model: exact match, log-prob, order and gap."""
    models = data["models"]
    trained = [model for model in models if model["iteration"] is not None]
    names = [model["name"] for model in models]
    plots = []
    for key, title, unit, caption in (
        (
            "exact_match",
            "Exact match",
            "share of held-out prompts",
            "Share of held-out prompts whose greedy answer is exactly the annotated one, with its exact 95 % interval.",
        ),
        (
            "logprob",
            "Held-out log-probability",
            "nats per token",
            "Held-out log-probability per token of the annotated answers, with its 95 % interval.",
        ),
    ):
        values = [model[key] for model in models]
        if any(values):
            svg = figures.by_model(f"heldout-{key}", names, values, unit)
            plots.append(Plot(title, Markup(svg), caption, f"{title} by model: {_say(names, values)}"))
    if trained:
        orders, gaps = [model["order"] for model in trained], [model["gap"][0] for model in trained]
        alt = "; ".join(f"iteration {m['name']}: order {m['order']:.3g}, gap {m['gap'][0]:.3g}" for m in trained)
        caption = (
            "The order of each iteration's objective (above) and the gap between data and opponent that the iteration "
            "estimated on held-out pairs (below). It has no interval: n pairs show no gap above ln n nats."
        )
        plots.append(Plot("Order α and gap D̂", Markup(figures.order_and_gap(orders, gaps)), caption, alt))
    return plots


def training_plots(data: dict[str, Any]) -> list[Plot]:
    """What happened inside the iterations, step by step."""
    columns, starts = data["steps"]["columns"], data["steps"]["starts"]
    plots = []
    for name, title, unit, sides, caption in (
        (
            "reward",
            "Rewards",
            "reward",
            ("annotated", "synthetic", "margin"),
            "Mean reward β · log-ratio of policy to opponent on each step's pairs, and the margin between the two sides. Every "
            "iteration starts at 0, where policy and opponent are the same.",
        ),
        (
            "ess",
            "Effective sample size",
            "share of the batch",
            ("annotated", "synthetic"),
            "How many samples the exponential weights of each side really use: 1 is all of the batch alike.",
        ),
        (
            "logprob",
            "Log-probabilities in training",
            "nats per token",
            ("annotated", "synthetic"),
            "Log-probability per token of both sides' responses under the policy, on each step's pairs.",
        ),
    ):
        series = {side: _gapless(columns[f"{name}/{side}"]) for side in sides if f"{name}/{side}" in columns}
        if starts and series:
            svg = figures.curves(name, series, starts, unit)
            ends = ", ".join(f"{side} from {curve[0]:.3g} to {curve[-1]:.3g}" for side, curve in series.items())
            alt = f"{title} over {len(columns['step'])} steps of {len(starts)} iterations: {ends}"
            plots.append(Plot(title, Markup(svg), caption, alt))
    return plots


def benchmark_plots(data: dict[str, Any]) -> list[Plot]:
    """The average, then each benchmark, by model."""
    models = [model for model in data["models"] if model["benchmarks"] or model["average"] is not None]
    names = [model["name"] for model in models]
    label = f" ({_label(data)})" if _label(data) else ""
    shown = {"average": [_around(model["average"], model["stderr"]) for model in models]}
    for benchmark in dict.fromkeys(name for model in models for name in model["benchmarks"]):
        shown[benchmark] = [_around(m["benchmarks"].get(benchmark), m["errors"].get(benchmark)) for m in models]
    return [
        Plot(
            f"{_title(name)}{label}",
            Markup(figures.benchmark(name, names, values)),
            _last(values),
            f"{_title(name)}{label}: {_say(names, values)}",
        )
        for name, values in shown.items()
        if any(values)
    ]


def _title(name: str) -> str:
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def _label(data: dict[str, Any]) -> str | None:
    return next((model["label"] for model in data["models"] if model["label"]), None)


def _around(value: float | None, error: float | None) -> tuple[float, float, float] | None:
    return None if value is None else (value, value - (error or 0), value + (error or 0))


def _last(values: list[tuple[float, float, float] | None]) -> str:
    known = [value[0] for value in values if value]
    return f"{100 * known[0]:.1f} → {100 * known[-1]:.1f} %" if len(known) > 1 else f"{100 * known[0]:.1f} %"


def _say(names: list[str], values: list[Any]) -> str:
    return "; ".join(f"{name} {_interval(value)}" for name, value in zip(names, values, strict=True))


def _interval(value: Any) -> str:
    return f"{value[0]:.3g} [{value[1]:.3g}, {value[2]:.3g}]" if value else "not measured"


def _gapless(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def _finite(value: Any) -> Any:
    """`value` with numbers that JSON cannot write (NaN, infinity) as None."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
