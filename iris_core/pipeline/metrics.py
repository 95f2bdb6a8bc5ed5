"""What each stage measures: written by the stage, kept as JSON in its manifest, read by attribute everywhere else.

    found = TrainMetrics.of(store.manifest("iteration-0/train"))
    found.gap.value

A field that is added later needs a default, so that older stores can still be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from iris_core.common.intervals import Interval
from iris_core.common.strict import Number
from iris_core.config import Packing
from iris_core.data.conversations import SourceRecord
from iris_core.objectives.gap import Gap
from iris_core.objectives.order import Movement
from iris_core.pipeline.sizes import Sizes
from iris_core.store import Metrics, Recorded


class Part(BaseModel):
    """A part of a stage's metrics."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PrepareMetrics(Metrics):
    """What the annotated data and the model hold.

    Attributes:
        train_pairs: annotated pairs to train on.
        heldout_pairs: pairs to measure with.
        prompts: prompts without annotation to train on.
        format: the formats of the sources, separated by commas.
        sources: what was read of each source.
        dropped: pairs that are not used, by reason.
        packing: whether the model is trained on packed rows.
        packing_reason: why.
        sizes: of the model, with the recipe's adapter, or the default one where the recipe trains all weights.
    """

    train_pairs: int
    heldout_pairs: int
    prompts: int = 0
    format: str = ""
    sources: list[SourceRecord] = Field(default_factory=list)
    dropped: dict[str, int] = Field(default_factory=dict)
    packing: Packing | None = None
    packing_reason: str | None = None
    sizes: Sizes | None = None


class GenerateMetrics(Metrics):
    """What the opponent answered.

    Attributes:
        prompts: of both splits.
        tokens: of all responses.
        mean_tokens: of one response.
        truncated: responses that were cut at the limit.
        empty: responses without text.
        finish_reasons: how many responses ended for which reason.
        tokens_per_second: the rate of sampling; None where every shard was already there.
        right: responses to prompts that are trained on which the verifier found right; None without a verifier.
        wrong: those it found wrong.
        undecided: those it could not judge.
        judged_prompts: how many prompts they answer.
        mixed: how many of these prompts have both right and wrong responses.
        heldout_right: share of the responses to held-out prompts that are right.
    """

    prompts: int
    tokens: int
    mean_tokens: float
    truncated: int
    empty: int
    finish_reasons: dict[str, int] = Field(default_factory=dict)
    tokens_per_second: float | None = None
    right: int | None = None
    wrong: int | None = None
    undecided: int | None = None
    judged_prompts: int | None = None
    mixed: int | None = None
    heldout_right: float | None = None

    @property
    def responses(self) -> int:
        """How many there are: one to each prompt, or several to each that is trained on."""
        return sum(self.finish_reasons.values()) or self.prompts

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the verdicts on responses that are trained on, and of prompts with both right and wrong ones.

        Empty without a verifier.
        """
        if not self.judged_prompts:
            return {}
        counts = {"right": self.right or 0, "wrong": self.wrong or 0, "undecided": self.undecided or 0}
        judged = sum(counts.values())
        return {name: count / judged for name, count in counts.items()} | {
            "mixed": (self.mixed or 0) / self.judged_prompts
        }


class HeldoutMetrics(Part):
    """The held-out pairs after an iteration of training. Log-probs are in nats per token.

    Attributes:
        annotated_logprob_per_token: of annotated responses under the policy.
        opponent_annotated_logprob_per_token: of the same under the opponent.
        annotated_logprob_gain_per_token: the former minus the latter.
        reward_margin: mean reward of annotated minus synthetic responses.
        synthetic_kl_per_token: KL divergence of the policy from the opponent, estimated on synthetic responses.
    """

    annotated_logprob_per_token: Interval
    opponent_annotated_logprob_per_token: Interval | None = None
    annotated_logprob_gain_per_token: Interval | None = None
    reward_margin: Number
    synthetic_kl_per_token: float | None = None


class StepMetrics(Part):
    """Training steps of one iteration: means over the steps, where nothing else is said.

    Attributes:
        steps: how many.
        loss: of the last step.
        ess_annotated: effective sample size of the weights on annotated responses.
        ess_synthetic: the same on synthetic responses.
        reward_margin: of the last step; None if its pairs had no synthetic responses.
        reward_accuracy: share of pairs with a positive margin in the last step, likewise.
        tokens_per_second: the rate of training.
        memory_gb: the largest of all steps.
        synthetic: how many pairs had synthetic responses of which kind, were dropped and masked.
    """

    steps: int
    loss: Number
    ess_annotated: Number
    ess_synthetic: Number
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    tokens_per_second: Number
    memory_gb: float | None = None
    synthetic: dict[str, int] = Field(default_factory=dict)


class TrainMetrics(Metrics):
    """What an iteration of training did: the gap it found, how far it moved the model, and its steps."""

    gap: Gap
    movement: Movement
    heldout: HeldoutMetrics
    train: StepMetrics


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


class ExactMatch(Part):
    """The share of `n` held-out prompts that were answered exactly."""

    exact_match: Interval
    n: int


class EvaluateMetrics(Metrics):
    """What a model scored.

    Attributes:
        benchmarks: the scores, by benchmark.
        label: "miniature" where the embedded benchmarks gave them; None for real ones.
        average: None without benchmarks.
        heldout: None without an answer pattern.
    """

    benchmarks: dict[str, Score] = Field(default_factory=dict)
    label: str | None = None
    average: Average | None = None
    heldout: ExactMatch | None = None


class ScheduleMetrics(Metrics):
    """The decision about the next iteration.

    Attributes:
        order: of this iteration.
        next_order: of the next one.
        reason: for the next order.
        converged: whether there is nothing more to learn.
        stop: whether the loop ends for that reason.
        finding: why it has converged, or not.
    """

    order: float
    next_order: float
    reason: str
    converged: bool
    stop: bool
    finding: str = ""


class RegisterMetrics(Metrics):
    """What MLflow holds of an iteration.

    Attributes:
        run_id: the iteration's run.
        parent_run_id: the experiment's run.
        version: of the registered model; None where the model got none.
        champion: whether that version became champion.
        champion_note: why, or why not.
    """

    run_id: str
    parent_run_id: str
    version: int | None = None
    champion: bool
    champion_note: str = ""


class PublishMetrics(Metrics):
    """Where the report is in MLflow: its run, and the page that shows it (None without a server)."""

    run_id: str
    link: str | None = None


class CompareMetrics(Metrics):
    """The comparison: its run in MLflow, and its table in Markdown."""

    run_id: str
    table: str


OF_STAGE: dict[str, type[Metrics]] = {
    "prepare": PrepareMetrics,
    "generate": GenerateMetrics,
    "train": TrainMetrics,
    "evaluate": EvaluateMetrics,
    "schedule": ScheduleMetrics,
    "register": RegisterMetrics,
    "publish": PublishMetrics,
    "compare": CompareMetrics,
}


def stage_metrics(stage: str, recorded: Recorded) -> Metrics:
    """The metrics of `stage` as its own class; of a stage that is not one of these, its warnings alone.

    Raises:
        StoreError: they do not fit.
    """
    return OF_STAGE.get(stage, Metrics).of(recorded)
