"""The experiment in one table: what each iteration did to the model, read from the manifests in the store.

    store = Store(Path("iris-store"), "demo")
    for row in rows(store):
        print(cells(row))

The same rows go to the terminal, the Prefect UI and the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from iris_core.common import markup
from iris_core.common.digest import json_digest
from iris_core.pipeline.stages import loop_places
from iris_core.store import Manifest, Store
from iris_core.store.places import PREFIX, iterations_in, place_of
from iris_core.tracking.comparable import (
    benchmark_protocols,
    exact_match_settings,
    logprob_settings,
)

OTHER = "other settings"
HEADERS = (
    "iteration",
    "α",
    "gap D̂ (ESS)",
    "ESS annotated / synthetic",
    "reward margin",
    "log-prob / token [95 %]",
    "exact match [95 %]",
    "average",
)


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Gap(NamedTuple):
    """An estimate without an interval: D̂, and of how many held-out pairs its weights effectively are."""

    value: float
    ess: float
    pairs: int


@dataclass(frozen=True)
class Row:
    """The model after one iteration; before the first where `iteration` is None.

    Attributes:
        order: α of the iteration.
        gap: D̂ between data and opponent, in nats.
        ess_annotated: effective sample size of the weights on annotated responses, as training logs it.
        ess_synthetic: the same on synthetic responses.
        reward_margin: mean held-out reward of annotated minus synthetic responses.
        logprob: held-out log-probability per token of annotated answers, in nats.
        exact_match: share of held-out prompts answered exactly.
        average: plain mean of the benchmarks, with its standard error.
        label: "miniature" where the embedded benchmarks gave the scores.
        settings: what a score was measured with, by its name here or a benchmark's.
        other: scores that were left out, as they were measured with other settings than the newest model's.
    """

    iteration: int | None
    order: float | None = None
    gap: Gap | None = None
    ess_annotated: float | None = None
    ess_synthetic: float | None = None
    reward_margin: float | None = None
    logprob: Interval | None = None
    exact_match: Interval | None = None
    average: float | None = None
    stderr: float | None = None
    label: str | None = None
    benchmarks: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)


class Champion(NamedTuple):
    """The version that took the alias `champion` last: whose it is, its number, and why."""

    iteration: int | None
    version: int
    note: str


class Warned(NamedTuple):
    """A warning of a stage, in one line."""

    place: str
    text: str


class Sample(NamedTuple):
    """A held-out prompt, its annotated answer, and the model's before and after self-play."""

    prompt: str
    annotated: str
    before: str
    after: str


def iterations(store: Store) -> Iterator[int]:
    """The iterations of the experiment whose training has completed, in order."""
    iteration = 0
    while store.manifest(place_of(iteration, "train")) is not None:
        yield iteration
        iteration += 1


def stages(store: Store) -> dict[str, Manifest | None]:
    """The manifest at each place of the experiment, None where a stage is not finished."""
    known = {place: store.manifest(place) for place in loop_places(iterations_in(store.home))}
    return {place: manifest for place, manifest in known.items() if manifest or place.startswith(PREFIX)}


def warnings(store: Store) -> list[Warned]:
    """What the finished stages warned of, in their order."""
    return [
        Warned(place, text)
        for place, manifest in stages(store).items()
        for text in (manifest.metrics.get("warnings", []) if manifest else [])
    ]


def rows(store: Store) -> list[Row]:
    """One row for the initial model, where something is known of it, and one for each iteration that trained.

    A column has scores of one kind only: those that were measured as the newest model's were.
    """
    trained = [store.manifest(place_of(t, "train")) for t in iterations(store)]
    initial = _scores(store.manifest(place_of(None, "evaluate")))
    if trained and trained[0] is not None:
        held = trained[0].metrics["heldout"]
        initial["logprob"] = _interval(held.get("opponent_annotated_logprob_per_token"))
        initial["settings"] = initial.get("settings", {}) | _logprob_settings(trained[0])
    found = [Row(iteration=None, **initial)] if initial else []
    for t, manifest in enumerate(trained):
        assert manifest is not None
        scores = _scores(store.manifest(place_of(t, "evaluate")))
        settings = scores.pop("settings", {}) | _logprob_settings(manifest)
        found.append(Row(iteration=t, **_training(manifest), **scores, settings=settings))
    newest = {name: value for row in found for name, value in row.settings.items()}
    return [_in_one_column(row, newest) for row in found]


def champion(store: Store) -> Champion | None:
    """The champion as the stage `register` left it; a person may have chosen another since."""
    taken = [
        Champion(
            manifest.spec["iteration"],
            manifest.metrics["version"],
            manifest.metrics["champion_note"].removeprefix("champion: "),
        )
        for place, manifest in stages(store).items()
        if manifest and place.endswith("/register") and manifest.metrics.get("champion")
    ]
    return taken[-1] if taken else None


def cells(row: Row) -> list[str]:
    """The row as text, a cell for each of `HEADERS`."""
    sizes = (row.ess_annotated, row.ess_synthetic)
    ess = "" if None in sizes else " / ".join(f"{size:.2f}" for size in sizes)
    error = "" if row.stderr is None else f" ± {100 * row.stderr:.1f}"
    average = "" if row.average is None else f"{100 * row.average:.1f}{error}"
    shown = {
        "logprob": _text(row.logprob, 2),
        "exact_match": _text(row.exact_match, 2),
        "average": average,
    }
    shown |= {name: OTHER for name in row.other if name in shown}
    return [
        "initial" if row.iteration is None else str(row.iteration),
        "" if row.order is None else f"{row.order:.3g}",
        "" if row.gap is None else f"{row.gap.value:.3f} ({row.gap.ess:.0f} of {row.gap.pairs})",
        ess,
        "" if row.reward_margin is None else f"{row.reward_margin:.3g}",
        *shown.values(),
    ]


def headers(found: list[Row]) -> list[str]:
    """`HEADERS`, with the average labelled where its benchmarks are the miniature."""
    label = next((row.label for row in found if row.label), None)
    return [*HEADERS[:-1], f"{label} average, %" if label else "average, %"]


def markdown(found: list[Row]) -> str:
    """The rows as a Markdown table."""
    return markup.table(headers(found), [cells(row) for row in found])


def samples(store: Store, count: int = 5) -> list[Sample]:
    """`count` held-out prompts, evenly spread, answered by the initial and by the last model.

    Returns:
        Nothing where one of the two models was not asked (no answer pattern, or no initial evaluation).
    """
    last = max(iterations(store), default=-1)
    before = _answers(store.manifest(place_of(None, "evaluate")))
    after = _answers(store.manifest(place_of(last, "evaluate")))
    prompts = [prompt for prompt in before if prompt in after]
    step = max(1, len(prompts) // count)
    return [
        Sample(
            prompt,
            before[prompt]["annotated"],
            before[prompt]["response"],
            after[prompt]["response"],
        )
        for prompt in prompts[::step][:count]
    ]


def place_name(place: str) -> str:
    """ "iteration 0 · train" for "iteration-0/train"."""
    return place.replace("-", " ").replace("/", " · ")


def _training(manifest: Manifest) -> dict[str, Any]:
    held, train = manifest.metrics["heldout"], manifest.metrics["train"]
    gap = manifest.metrics["gap"]
    return {
        "order": manifest.spec["order"],
        "gap": Gap(gap["value"], gap["ess"], gap["pairs"]),
        "ess_annotated": train["ess_annotated"],
        "ess_synthetic": train["ess_synthetic"],
        "reward_margin": held["reward_margin"],
        "logprob": _interval(held["annotated_logprob_per_token"]),
    }


def _in_one_column(row: Row, newest: dict[str, str]) -> Row:
    """The row without scores that were measured with other settings than those of the newest row that has them."""
    other = [name for name, value in row.settings.items() if value != newest[name]]
    benchmarks = {name: value for name, value in row.benchmarks.items() if name not in other}
    left_out: dict[str, Any] = {name: None for name in other if name not in row.benchmarks}
    if "average" in other:
        left_out |= {"stderr": None, "label": None}
    return replace(row, **left_out, benchmarks=benchmarks, other=other)


def _logprob_settings(manifest: Manifest) -> dict[str, str]:
    return {"logprob": json_digest(logprob_settings(manifest))}


def _score_settings(manifest: Manifest) -> dict[str, str]:
    settings = benchmark_protocols(manifest)
    if average := manifest.metrics.get("average"):
        settings["average"] = average["protocol"]
    if "heldout" in manifest.metrics:
        settings["exact_match"] = json_digest(exact_match_settings(manifest))
    return settings


def _scores(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    average = manifest.metrics.get("average") or {}
    return {
        "average": average.get("value"),
        "stderr": average.get("stderr"),
        "label": manifest.metrics.get("label"),
        "benchmarks": {name: score["value"] for name, score in manifest.metrics["benchmarks"].items()},
        "exact_match": _interval(manifest.metrics.get("heldout", {}).get("exact_match")),
        "settings": _score_settings(manifest),
    }


def _answers(manifest: Manifest | None) -> dict[str, dict[str, str]]:
    """The rows of an evaluation's held-out answers, by prompt."""
    if manifest is None or "heldout" not in manifest.outputs:
        return {}
    import pyarrow.parquet as parquet  # only here: the table needs the standard library alone

    table = parquet.read_table(manifest.artifact("heldout").intact())
    return {row["prompt"]: row for row in table.to_pylist()}


def _interval(found: dict[str, float] | None) -> Interval | None:
    return Interval(found["value"], found["low"], found["high"]) if found else None


def _text(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return ""
    value, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{value} [{low}, {high}]"
