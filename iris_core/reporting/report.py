"""What the report of an experiment holds: `report.json` is a `Report` as JSON, and the page is drawn from it.

In JSON, an interval is the list value, low, high, and a gap the list value, ESS, pairs.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_serializer

from iris_core.common.intervals import Interval
from iris_core.common.strict import Strict
from iris_core.config import ObjectivePart
from iris_core.objectives.gap import Gap
from iris_core.pipeline.metrics import GenerateMetrics, RegisterMetrics
from iris_core.reporting.summary import Champion, Row


class StageWarnings(Strict):
    """The warnings of one stage."""

    place: str
    texts: list[str]


class Inputs(Strict):
    """The model that self-play starts from, and the annotated pairs."""

    model: str
    revision: str | None
    model_digest: str
    dtype: str
    data: str
    data_digest: str
    train_pairs: int
    heldout_pairs: int
    prompts: int = Field(0, exclude_if=lambda prompts: prompts == 0)  # without annotation
    dropped: dict[str, int]


class Tile(Strict):
    """One of the most important numbers, before and after self-play."""

    name: str
    before: str
    after: str
    note: str


class Table(Strict):
    """The table of iterations as text."""

    headers: list[str]
    rows: list[list[str]]


class Model(Row):
    """One row of the table as numbers, with what the table leaves out.

    Attributes:
        name: "initial", or the number of the iteration.
        errors: standard errors of the benchmarks.
        reason: for the order of the next iteration.
        generated: the synthetic responses that the model was trained on.
    """

    name: str
    errors: dict[str, float | None] = Field(default_factory=dict)
    reason: str | None = None
    generated: GenerateMetrics | None = None

    @field_serializer("logprob", "exact_match")
    def _interval(self, found: Interval | None) -> list[float] | None:
        return [found.value, found.low, found.high] if found else None

    @field_serializer("gap")
    def _gap(self, found: Gap | None) -> list[float] | None:
        return [found.value, found.ess, found.pairs] if found else None

    @field_serializer("generated")
    def _generated(self, found: GenerateMetrics | None) -> dict[str, Any] | None:
        return found.model_dump(exclude_unset=True) if found else None


class Steps(Strict):
    """The training histories one after another: a column for each quantity, and the index of each iteration's start."""

    starts: list[int]
    columns: dict[str, list[float | None]]


class BenchmarkSettings(Strict):
    """How a benchmark was run."""

    name: str
    task: str | None
    shots: int | None
    metric: str | None
    n: int | None
    protocol: str


class Answers(Strict):
    """A held-out prompt with its annotated answer and those of two models; `how` says which and how they answered."""

    prompt: str
    annotated: str
    before: str
    after: str
    before_correct: bool | None = None
    after_correct: bool | None = None
    how: str


class Stage(Strict):
    """The lineage of one stage; a stage that is not finished has a place only."""

    place: str
    finished: bool
    key: str | None = None
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    started: str | None = None
    seconds: float | None = None
    bytes: int | None = None
    outputs: dict[str, str] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)
    registered: RegisterMetrics | None = None


class Report(Strict):
    """Everything the report shows.

    Attributes:
        experiment: its name.
        wanted: how many iterations the recipe asks for.
        done: how many have trained.
        stopped: the loop ended early, because there was nothing more to learn.
        inputs: None before the stage `prepare`.
        objective: None before the first training.
        result: what self-play did, in a sentence.
        warnings: stage by stage.
        champion: None before the first.
        tiles: the most important numbers.
        table: of iterations.
        models: its rows as numbers.
        steps: the training histories.
        benchmarks: how they were run.
        samples: answers before and after.
        stages: the lineage.
        recipe: of the newest run, without credentials; empty if none was kept.
    """

    experiment: str
    wanted: int | None
    done: int
    stopped: bool
    inputs: Inputs | None
    objective: ObjectivePart | None
    result: str
    warnings: list[StageWarnings]
    champion: Champion | None
    tiles: list[Tile]
    table: Table
    models: list[Model]
    steps: Steps
    benchmarks: list[BenchmarkSettings]
    samples: list[Answers]
    stages: list[Stage]
    recipe: str

    @field_serializer("stages")
    def _stages(self, found: list[Stage]) -> list[dict[str, Any]]:
        return [stage.model_dump(mode="json", exclude_unset=True) for stage in found]
