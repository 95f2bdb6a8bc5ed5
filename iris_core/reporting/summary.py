"""The experiment in one table: what each iteration did to the model, from the manifests in the store.

    store = Store(Path("iris-store"), "demo")
    for row in rows(store):
        print(cells(row))

Terminal, Prefect UI and report show the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from iris_core.common import markup
from iris_core.common.intervals import Interval
from iris_core.common.strict import Strict
from iris_core.config.rules import is_none
from iris_core.config.verification import accuracy_name
from iris_core.objectives.gap import Gap
from iris_core.pipeline.comparable import evaluation_protocols, training_protocols, verifier_of
from iris_core.pipeline.metrics import EvaluateMetrics, RegisterMetrics, TrainMetrics
from iris_core.pipeline.specs import RegisterSpec, TrainSpec
from iris_core.pipeline.stages import loop_places
from iris_core.store import Manifest, Metrics, Store
from iris_core.store.places import PREFIX, iterations_in, place_of

OTHER = "other settings"
HEADERS = (
    "iteration",
    "α",
    "gap D̂ (ESS)",
    "ESS annotated / synthetic",
    "reward margin",
    "log-prob / token [95 %]",
    "exact match [95 %]",  # or a verifier's accuracy
    "average",
)


class Row(Strict):
    """The model after one iteration; the initial model where `iteration` is None.

    Attributes:
        order: α of the iteration.
        gap: D̂ between data and opponent, in nats.
        ess_annotated: effective sample size of the weights on annotated responses, as training logs it.
        ess_synthetic: the same on synthetic responses.
        reward_margin: mean held-out reward of annotated minus synthetic responses.
        logprob: held-out log-probability per token of annotated answers, in nats.
        exact_match: share of held-out prompts answered exactly, or rightly where a verifier judges.
        verifier: its kind; None where answers are compared for exact match.
        average: plain mean of the benchmarks, with its standard error.
        label: "miniature" where the embedded benchmarks gave the scores.
        settings: a digest of what a score was measured with, by its name here or a benchmark's.
        other: scores that are left out, because they were measured with other settings than the newest model's.
    """

    iteration: int | None
    order: float | None = None
    gap: Gap | None = None
    ess_annotated: float | None = None
    ess_synthetic: float | None = None
    reward_margin: float | None = None
    logprob: Interval | None = None
    exact_match: Interval | None = None
    verifier: str | None = Field(None, exclude_if=is_none)
    average: float | None = None
    stderr: float | None = None
    label: str | None = None
    benchmarks: dict[str, float] = Field(default_factory=dict)
    settings: dict[str, str] = Field(default_factory=dict)
    other: list[str] = Field(default_factory=list)


class Champion(Strict):
    """The version that got the alias `champion` last: its iteration, its number, and why."""

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
    """The warnings of the finished stages, in their order."""
    return [
        Warned(place, text)
        for place, manifest in stages(store).items()
        for text in (Metrics.of(manifest).warnings if manifest else [])
    ]


def rows(store: Store) -> list[Row]:
    """One row for the initial model, if something is known of it, and one for each iteration that trained.

    The scores of a column were all measured with the settings of the newest model's score.
    """
    trained = [store.manifest(place_of(t, "train")) for t in iterations(store)]
    initial = _scores(store.manifest(place_of(None, "evaluate")))
    if trained and trained[0] is not None:
        initial["logprob"] = TrainMetrics.of(trained[0]).heldout.opponent_annotated_logprob_per_token
        initial["settings"] = initial.get("settings", {}) | training_protocols(trained[0])
    found = [Row(iteration=None, **initial)] if initial else []
    for t, manifest in enumerate(trained):
        assert manifest is not None
        scores = _scores(store.manifest(place_of(t, "evaluate")))
        settings = scores.pop("settings", {}) | training_protocols(manifest)
        found.append(Row(iteration=t, **_training(manifest), **scores, settings=settings))
    newest = {name: value for row in found for name, value in row.settings.items()}
    return [_in_one_column(row, newest) for row in found]


def champion(store: Store) -> Champion | None:
    """The champion as the stage `register` chose it; a person may have chosen another one since."""
    registered = [manifest for manifest in stages(store).values() if manifest and manifest.stage == "register"]
    for manifest in reversed(registered):
        found = RegisterMetrics.of(manifest)
        if found.champion and found.version is not None:
            note = found.champion_note.removeprefix("champion: ")
            return Champion(iteration=RegisterSpec.of(manifest).iteration, version=found.version, note=note)
    return None


def cells(row: Row) -> list[str]:
    """The row as text, a cell for each of `HEADERS`."""
    sizes = (row.ess_annotated, row.ess_synthetic)
    ess = " / ".join("–" if size is None else f"{size:.2f}" for size in sizes) if any(sizes) else ""
    error = "" if row.stderr is None else f" ± {100 * row.stderr:.1f}"
    average = "" if row.average is None else f"{100 * row.average:.1f}{error}"
    shown = {
        "logprob": f"{row.logprob:.2f}" if row.logprob else "",
        "exact_match": f"{row.exact_match:.2f}" if row.exact_match else "",
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
    """`HEADERS`, with the average labelled where its benchmarks are the miniature, and accuracy by its verifier."""
    label = next((row.label for row in found if row.label), None)
    accuracy = f"{accuracy_name(verifier_in(found))} [95 %]"
    return [*HEADERS[:-2], accuracy, f"{label} average, %" if label else "average, %"]


def verifier_in(found: Sequence[Row]) -> str | None:
    """The kind of verifier that judged the newest model's held-out answers; None: they are compared exactly."""
    return next((row.verifier for row in reversed(found) if row.exact_match), None)


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
    found = TrainMetrics.of(manifest)
    return {
        "order": TrainSpec.of(manifest).order,
        "gap": found.gap,
        "ess_annotated": found.train.ess_annotated,
        "ess_synthetic": found.train.ess_synthetic,
        "reward_margin": found.heldout.reward_margin,
        "logprob": found.heldout.annotated_logprob_per_token,
    }


def _in_one_column(row: Row, newest: dict[str, str]) -> Row:
    """The row without scores whose settings differ from those of the newest row with that score."""
    other = [name for name, value in row.settings.items() if value != newest[name]]
    benchmarks = {name: value for name, value in row.benchmarks.items() if name not in other}
    left_out: dict[str, Any] = {name: None for name in other if name not in row.benchmarks}
    if "average" in other:
        left_out |= {"stderr": None, "label": None}
    return row.model_copy(update={**left_out, "benchmarks": benchmarks, "other": other})


def _scores(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    found = EvaluateMetrics.of(manifest)
    return {
        "average": found.average.value if found.average else None,
        "stderr": found.average.stderr if found.average else None,
        "label": found.label,
        "benchmarks": {name: score.value for name, score in found.benchmarks.items()},
        "exact_match": found.heldout.exact_match if found.heldout else None,
        "verifier": verifier_of(manifest),
        "settings": evaluation_protocols(manifest),
    }


def _answers(manifest: Manifest | None) -> dict[str, dict[str, str]]:
    """The rows of an evaluation's held-out answers, by prompt."""
    if manifest is None or "heldout" not in manifest.outputs:
        return {}
    import pyarrow.parquet as parquet  # only here: the table does not need it

    table = parquet.read_table(manifest.artifact("heldout").intact())
    return {row["prompt"]: row for row in table.to_pylist()}
