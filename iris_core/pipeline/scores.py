"""A benchmark's score with everything that decides it, and the average: parts of what the stage `evaluate` measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of a stage's metrics."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Score(Part):
    """A benchmark's score.

    Attributes:
        value: the metric, between 0 and 1.
        stderr: its standard error; None with fewer than two items.
        n: items.
        metric: what the harness calls the metric.
        shots: examples in each prompt.
        task: the harness's task.
        protocol: digest of all that decides the score but the model.
        recorded: other results, by "metric,filter".
    """

    value: float
    stderr: float | None = None
    n: int | None = None
    metric: str | None = None
    shots: int | None = None
    task: str | None = None
    protocol: str
    recorded: dict[str, float] = Field(default_factory=dict)


class ProtocolSettings(Part):
    """What decides a benchmark's score, but for the model; known before it runs. None: not set, or not known.

    Attributes:
        benchmark: its name in a recipe.
        task: the harness's task.
        shots: examples in each prompt.
        metric: what the harness calls the metric.
        filter: the filter of answers.
        limit: items per task.
        apply_chat_template: whether prompts are rendered by the model's chat template.
        chat_template: date and variables of the template, where it is applied.
        fewshot_seed: chooses the examples.
        max_gen_tokens: most tokens of an answer.
        backend: the engine.
        dtype: of the weights.
        data: digest of the mirror, or "hub".
        label: "miniature" where the embedded benchmarks gave the score.
        lm_eval: the harness's version.
    """

    benchmark: str
    task: str | None = None
    shots: int | None = None
    metric: str | None = None
    filter: str | None = None
    limit: int | None = None
    apply_chat_template: bool | None = None
    chat_template: dict[str, Any] | None = None
    fewshot_seed: int | None = None
    max_gen_tokens: int | None = None
    backend: str | None = None
    dtype: str | None = None
    data: str | None = None
    label: str | None = None
    lm_eval: str | None = None


class BenchmarkRecord(ProtocolSettings):
    """A benchmark's score with the settings that decide it and each item's metric: a JSON file of the output `scores`.

    Attributes:
        task_version: the harness's version of the task.
        items_digest: SHA-256 of the items' content.
        protocol: digest of the settings, the task's version and the items.
        model: digest of the model.
        adapter: digest of the adapter; None without one.
        versions: of libraries.
        value: the metric, between 0 and 1.
        stderr: its standard error; None with fewer than two items.
        n: items.
        recorded: other results, by "metric,filter".
        items: the metric of each item, in the harness's order.
        seconds: that the benchmark took.
    """

    task_version: Any = None
    items_digest: str | None = None
    protocol: str
    model: str | None = None
    adapter: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    value: float
    stderr: float | None = None
    n: int | None = None
    recorded: dict[str, float] = Field(default_factory=dict)
    items: list[float]
    seconds: float = 0.0

    @property
    def score(self) -> Score:
        """The part that the stage's metrics have."""
        return Score(**self.model_dump(include=set(Score.model_fields)))

    @classmethod
    def read(cls, file: Path) -> Self:
        """The record in `file`."""
        return cls.model_validate(json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        """Writes the record to `file`."""
        file.write_text(json.dumps(self.model_dump(), indent=1), encoding="utf-8")


class Average(Part):
    """The plain mean of the benchmarks, with its standard error; `protocol` is a digest of theirs."""

    value: float
    stderr: float | None = None
    benchmarks: int
    protocol: str
