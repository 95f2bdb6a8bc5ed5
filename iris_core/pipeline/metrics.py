"""What each stage measures: written by the stage, kept as JSON in its manifest, read by attribute everywhere else.

    found = TrainMetrics.of(store.manifest("iteration-0/train"))
    found.gap.value

A field that is added later needs a default, so that older stores can still be read.
"""

from __future__ import annotations

from pydantic import Field

from iris_core.common.intervals import Interval
from iris_core.common.strict import Number
from iris_core.config import Packing
from iris_core.data.conversations import SourceRecord
from iris_core.objectives.gap import Gap
from iris_core.objectives.order import Movement
from iris_core.pipeline.scores import Average, Part, Score
from iris_core.pipeline.sizes import Sizes
from iris_core.store import Metrics, Recorded


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
        heldout_right: share of the responses to held-out prompts that are right, of those with something to compare
            with.
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
        ess_annotated: effective sample size of the weights on annotated responses, over the steps with such weights;
            None where no step has any.
        ess_synthetic: the same on synthetic responses.
        reward_margin: of the last step; None if its pairs had no synthetic responses, and where verdicts are learned
            from.
        reward_accuracy: share of pairs with a positive margin in the last step, likewise.
        tokens_per_second: the rate of training.
        memory_gb: the largest of all steps.
        synthetic: how many pairs had synthetic responses of which kind, were dropped and masked; where verdicts are
            learned from, how many samples.
        share_right: share of right samples among a prompt's decided ones, of prompts with an annotated response or a
            weight; None where nothing is learned from verdicts.
        up: weight U of right samples, per prompt, likewise.
        down: weight D of wrong samples, per prompt, likewise.
    """

    steps: int
    loss: Number
    ess_annotated: float | None = None
    ess_synthetic: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    tokens_per_second: Number
    memory_gb: float | None = None
    synthetic: dict[str, int] = Field(default_factory=dict)
    share_right: float | None = None
    up: float | None = None
    down: float | None = None


class TrainMetrics(Metrics):
    """What an iteration of training did: the gap it found, how far it moved the model, and its steps."""

    gap: Gap
    movement: Movement
    heldout: HeldoutMetrics
    train: StepMetrics


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
        exact_set: of queries (verifier sql), those with the parts of the annotated one; None for other answers.
    """

    benchmarks: dict[str, Score] = Field(default_factory=dict)
    label: str | None = None
    average: Average | None = None
    heldout: ExactMatch | None = None
    exact_set: ExactMatch | None = None


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
