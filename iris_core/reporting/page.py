"""The report of an experiment: one HTML file that needs no other file, and its data as JSON.

    from iris_core.reporting.page import write_report
    write_report(Store(Path("iris-store"), "demo"))     # <store>/demo/report.html, report.json

It works on an unfinished experiment, contacts no server, and is the same file for the same store.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from iris_core.common.files import write_atomic
from iris_core.common.intervals import Interval
from iris_core.common.markup import plain
from iris_core.config.verification import accuracy_name
from iris_core.evaluation.benchmarks import BENCHMARKS
from iris_core.reporting import figures
from iris_core.reporting.content import collect
from iris_core.reporting.report import Model, Report, Steps
from iris_core.reporting.summary import verifier_in
from iris_core.store import Store

TEMPLATES = Path(__file__).with_name("templates")
SHARES = ("right", "wrong", "undecided")  # of the verdicts on synthetic responses
CURVES = (  # column of the history, title, unit, sides, caption
    (
        "reward",
        "Rewards",
        "reward",
        ("annotated", "synthetic", "right", "wrong", "margin"),
        "Mean reward β · log-ratio of policy to opponent on each step's pairs, and the margin between the two sides; "
        "with a verifier, of right responses and of the tokens at which others go wrong, by their weight. Every "
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
)


class Plot(NamedTuple):
    """A plot of the report: the picture, its caption, and the same in words for screen readers."""

    title: str
    svg: Markup
    caption: str
    alt: str


def write_report(store: Store) -> Path:
    """Writes `report.html` and `report.json` into the experiment's folder and returns the former."""
    report = collect(store)
    write_atomic(store.home / "report.json", report.model_dump_json(indent=1))
    write_atomic(store.home / "report.html", render(report))
    for name in ("report.json", "report.html"):
        store.push(store.home / name)
    return store.home / "report.html"


def pages() -> jinja2.Environment:
    """The templates of pages. Values are inserted as text: escaped, without control characters."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_as_text,
    )


def render(report: Report) -> str:
    """The page."""
    environment = pages()
    environment.filters |= {
        "minutes": _minutes,
        "size": _size,
        "json": lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    }
    page = environment.get_template("report.html.j2")
    return page.render(
        **dict(report),
        outcome=outcome_plots(report.models),
        training=training_plots(report.steps),
        scores=benchmark_plots(report.models),
        label=_label(report.models),
        verifier=verifier_in(report.models),
        judged=any(model.generated and model.generated.shares for model in report.models),
    )


def _as_text(value: Any) -> Any:
    markup = isinstance(value, Markup) or not isinstance(value, str)
    return value if markup else plain(value)


def outcome_plots(models: list[Model]) -> list[Plot]:
    """What the iterations did to the model: accuracy, log-prob, verdicts on its responses, order and gap."""
    names = [model.name for model in models]
    plots = []
    for key, title, unit, caption in _outcomes(models):
        values = [getattr(model, key) for model in models]
        if any(values):
            svg = figures.by_model(f"heldout-{key}", names, values, unit)
            plots.append(Plot(title, Markup(svg), caption, f"{title} by model: {_by_name(names, values)}"))
    judged = [model for model in models if model.generated and model.generated.shares]
    if judged:
        plots.append(_verdicts(judged))
    trained = [model for model in models if model.order is not None and model.gap is not None]
    return [*plots, _order_and_gap(trained)] if trained else plots


def _outcomes(models: list[Model]) -> list[tuple[str, str, str, str]]:
    """Attribute of the model, title, unit and caption of each plot by model."""
    verifier = verifier_in(models)
    how = f"is right for the verifier, {verifier}" if verifier else "is exactly the annotated one"
    return [
        (
            "exact_match",
            accuracy_name(verifier).capitalize(),
            "share of held-out prompts",
            f"Share of held-out prompts whose greedy answer {how}, with its exact 95 % interval.",
        ),
        (
            "logprob",
            "Held-out log-probability",
            "nats per token",
            "Held-out log-probability per token of the annotated answers, with its 95 % interval.",
        ),
    ]


def _verdicts(judged: list[Model]) -> Plot:
    names, shares = [model.name for model in judged], [model.generated.shares for model in judged if model.generated]
    svg = figures.verdicts(names, {name: [found[name] for found in shares] for name in (*SHARES, "mixed")})
    alt = "; ".join(
        f"iteration {name}: " + ", ".join(f"{share} {found[share]:.0%}" for share in (*SHARES, "mixed"))
        for name, found in zip(names, shares, strict=True)
    )
    caption = (
        "What the verifier found of the opponent's responses to prompts that are trained on, and the share of these "
        "prompts with both right and wrong responses (mixed): only they show a difference."
    )
    return Plot("Verdicts on synthetic responses", Markup(svg), caption, alt)


def training_plots(steps: Steps) -> list[Plot]:
    """What happened inside the iterations, step by step."""
    columns, starts = steps.columns, steps.starts
    plots = []
    for name, title, unit, sides, caption in CURVES:
        series = {side: _gapless(columns[f"{name}/{side}"]) for side in sides if f"{name}/{side}" in columns}
        if starts and series:
            svg = figures.curves(name, series, starts, unit)
            ends = ", ".join(f"{side} from {curve[0]:.3g} to {curve[-1]:.3g}" for side, curve in series.items())
            alt = f"{title} over {len(columns['step'])} steps of {len(starts)} iterations: {ends}"
            plots.append(Plot(title, Markup(svg), caption, alt))
    return plots


def benchmark_plots(models: list[Model]) -> list[Plot]:
    """The average, then each benchmark, by model. Intervals are one standard error to each side."""
    scored = [model for model in models if model.benchmarks or model.average is not None]
    names = [model.name for model in scored]
    label = f" ({_label(models)})" if _label(models) else ""
    shown = {"average": [_around(model.average, model.stderr) for model in scored]}
    for benchmark in dict.fromkeys(name for model in scored for name in model.benchmarks):
        shown[benchmark] = [_around(m.benchmarks.get(benchmark), m.errors.get(benchmark)) for m in scored]
    return [
        Plot(
            f"{_title(name)}{label}",
            Markup(figures.benchmark(name, names, values)),
            _first_to_last(values),
            f"{_title(name)}{label}: {_by_name(names, values)}",
        )
        for name, values in shown.items()
        if any(values)
    ]


def _order_and_gap(trained: list[Model]) -> Plot:
    orders, gaps = [model.order for model in trained], [model.gap.value for model in trained if model.gap]
    alt = "; ".join(
        f"iteration {model.name}: order {order:.3g}, gap {gap:.3g}"
        for model, order, gap in zip(trained, orders, gaps, strict=True)
    )
    caption = (
        "The order of each iteration's objective (above) and the gap between data and opponent that the iteration "
        "estimated on held-out pairs (below). It has no interval: n pairs show no gap above ln n nats."
    )
    return Plot("Order α and gap D̂", Markup(figures.order_and_gap(orders, gaps)), caption, alt)


def _title(name: str) -> str:
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def _label(models: list[Model]) -> str | None:
    return next((model.label for model in models if model.label), None)


def _around(value: float | None, error: float | None) -> Interval | None:
    return None if value is None else Interval(value=value, low=value - (error or 0), high=value + (error or 0))


def _first_to_last(values: list[Interval | None]) -> str:
    known = [f"{100 * value.value:.1f}" for value in values if value]
    return f"{known[0]} → {known[-1]} %" if len(known) > 1 else f"{known[0]} %"


def _by_name(names: list[str], values: list[Interval | None]) -> str:
    texts = (f"{value:.3g}" if value else "not measured" for value in values)
    return "; ".join(f"{name} {text}" for name, text in zip(names, texts, strict=True))


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
