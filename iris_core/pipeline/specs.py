"""The spec of every stage: what it needs, by content. Light to import: flows build specs without torch."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from iris_core import tracking
from iris_core.common.digest import json_digest
from iris_core.common.strict import Strict
from iris_core.config import (
    DataPart,
    EvaluationPart,
    GenerationPart,
    LoraPart,
    ModelPart,
    ObjectivePart,
    Packing,
    SchedulePart,
    SyntheticPart,
    TrainingPart,
    VerificationPart,
)
from iris_core.config.rules import ModelName, TrackingUri, is_none
from iris_core.objectives.gap import Gap
from iris_core.objectives.order import Movement
from iris_core.pipeline.metrics import CompareMetrics, RegisterMetrics
from iris_core.store import Artifact, Manifest, Policy, Spec

EVALUATION_BATCH = 16  # requests in a batch of the stage `evaluate`, where `execution.batch_size` says nothing
# A field of a later version is left out of keys where it says nothing, so that the keys of older stores stay.
Verification = Annotated[VerificationPart, Field(exclude_if=lambda part: not part.judges)]
VERIFIERS_FILES: dict[str, Any] = {"verification": {"schema_path": True, "databases": True}}  # their digest is keyed
PUBLISHED = "iris.published"  # the tag of a run that names the spec of what is kept with it


class PrepareSpec(Spec):
    """Resolve the model, read, check and split the annotated pairs.

    Output `pairs`: Parquet of `iris_core.data.pairs.Pair`, in training order: ids, text and tokens of both sides.
    Output `model`: a `ResolvedModel` as a JSON file.
    """

    stage: ClassVar[str] = "prepare"
    unkeyed: ClassVar[dict[str, Any]] = {
        **Spec.unkeyed,
        **VERIFIERS_FILES,
        "data": {"split_seed": True},  # it is `seed`
    }
    model: ModelPart
    model_digest: str | None  # of a local folder
    model_commit: str | None  # of a model on the hub
    data: DataPart
    data_digest: str | None
    heldout_digest: str | None
    heldout_chosen: Literal["by digest"] | None = Field(None, exclude_if=is_none)  # with a file: None before that rule
    prompts_digest: str | None = Field(None, exclude_if=is_none)
    verification: Verification = VerificationPart()
    verifier_digest: str | None = Field(None, exclude_if=is_none)
    max_new_tokens: int
    packing: Literal["auto", "packed", "separate"]
    lora: LoraPart | None
    gradient_checkpointing: bool
    seed: int  # data.split_seed where it is set

    def kept_elsewhere(self, manifest: Manifest) -> bool:
        """Whether the model's folder is on this machine; a store in S3 may come from another one."""
        found = ResolvedModel.model_validate_json(manifest.artifact("model").path.read_text(encoding="utf-8"))
        return found.path.is_dir()


class ResolvedModel(BaseModel):
    """The model that self-play starts from, as `prepare` found it.

    Attributes:
        path: its folder.
        digest: of its weights, settings and tokenizer.
        dtype: of the weights in memory.
        name: as the recipe names it.
        revision: the commit, if it is on the hub.
        stop_token_ids: what ends a generated response: the end of turn of the chat template, then others.
        packing: whether it is trained and scored on packed rows.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: Path
    digest: str
    dtype: str
    name: str | None = None
    revision: str | None = None
    stop_token_ids: list[int]
    packing: Packing


class GenerateSpec(Spec):
    """Sample `generation.samples` responses to every prompt that is trained on, and one to every held-out prompt.

    Output `responses`: folder of Parquet shards with prompt_id, sample, split, response, token_ids, finish_reason.
    Output `verdicts`, where there is a verifier: as many shards with prompt_id, sample, verdict, reason.
    """

    stage: ClassVar[str] = "generate"
    uses_gpus: ClassVar[bool] = True
    unkeyed: ClassVar[dict[str, Any]] = {**Spec.unkeyed, **VERIFIERS_FILES}
    policy: Policy
    pairs: Artifact
    generation: GenerationPart
    verification: Verification = VerificationPart()
    verifier_digest: str | None = Field(None, exclude_if=is_none)
    answer_pattern: str | None = Field(None, exclude_if=is_none)  # for the verifier
    stop_token_ids: list[int]
    dtype: str
    trust_remote_code: bool = False
    seed: int


class TrainSpec(Spec):
    """Fine-tune the policy, starting from `policy`, against `opponent`.

    `synthetic` holds the opponent's responses, the newest first, and `verdicts` what a verifier says of each of them,
    where the objective learns from that; `wrong_samples` says which tokens of wrong ones a push is on, and
    `baseline` is κ, the part of the share of right ones that is subtracted from verdicts.
    `initial_synthetic` holds those of the initial model, for T-SPIN. Both sides are compared up to `max_new_tokens`
    tokens, because no synthetic response is longer.

    Outputs: `adapter` (LoRA) or `model` (full); `history` (JSON Lines, a row for each step); `opponent_logprobs`;
    `heldout` (Parquet, a row for each held-out pair: log-probs of both responses under opponent and policy).
    """

    stage: ClassVar[str] = "train"
    uses_gpus: ClassVar[bool] = True
    unkeyed: ClassVar[dict[str, Any]] = {**Spec.unkeyed, "training": {"sharding": True}, "longest": True}
    has_ranks: ClassVar[bool] = True
    policy: Policy
    opponent: Policy
    pairs: Artifact
    synthetic: list[Artifact]
    verdicts: list[Artifact] = Field(default=[], exclude_if=lambda verdicts: not verdicts)
    wrong_samples: Literal["first-token"] | None = Field(None, exclude_if=is_none)  # None: of a version that pushed all
    baseline: float | None = Field(None, exclude_if=is_none)  # None: for rft, or of a version that subtracted all
    initial_synthetic: Artifact | None = None
    objective: ObjectivePart
    order: float
    training: TrainingPart
    packing: Packing
    learning_rate: float
    handling: SyntheticPart
    max_new_tokens: int
    dtype: str
    trust_remote_code: bool = False
    seed: int
    longest: int = 0  # computed tokens of the longest group, which the stage finds: its row is no shorter


class EvaluateSpec(Spec):
    """Score a policy on the benchmarks, and on held-out prompts by a verifier or by exact match.

    Outputs: `scores` (folder, a JSON file a benchmark) and, with a verifier or an answer pattern, `heldout` (Parquet).
    """

    stage: ClassVar[str] = "evaluate"
    uses_gpus: ClassVar[bool] = True
    unkeyed: ClassVar[dict[str, Any]] = {**Spec.unkeyed, **VERIFIERS_FILES}
    policy: Policy
    evaluation: EvaluationPart
    data: Artifact | None
    pairs: Artifact
    answer_pattern: str | None
    verification: Verification = VerificationPart()
    verifier_digest: str | None = Field(None, exclude_if=is_none)
    stop_token_ids: list[int]
    chat_template_kwargs: dict[str, str | bool | int | float | None]
    template_date: datetime.date
    max_new_tokens: int
    dtype: str
    trust_remote_code: bool = False
    seed: int


class ScheduleSpec(Spec):
    """Set the next order from the gaps measured so far (the last one is this iteration's), and say whether to go on.

    Output `schedule`: the metrics (`ScheduleMetrics`) as a JSON file.
    """

    stage: ClassVar[str] = "schedule"
    schedule: SchedulePart
    iteration: int
    iterations: int
    order: float
    gaps: list[Gap]
    movement: Movement


class Member(Strict):
    """One loop of a comparison: its objective and seed, and the manifests of its trainings and evaluations in order."""

    objective: str
    beta: float
    seed: int
    train: list[Artifact]
    evaluate: list[Artifact]
    initial: Artifact | None


class CompareSpec(Spec):
    """Put loops that differ in objective and seed side by side, and log that to MLflow.

    Outputs `page` (one self-contained HTML file) and `comparison` (the same figures as JSON).
    """

    stage: ClassVar[str] = "compare"
    experiment: str
    tracking_uri: TrackingUri
    members: list[Member]

    def kept_elsewhere(self, manifest: Manifest) -> bool:
        """Whether MLflow still has the run with the figures."""
        return tracking.holds(self.tracking_uri, [CompareMetrics.of(manifest).run_id])


class RegisterSpec(Spec):
    """Log one iteration to MLflow, register its model as a version and let it challenge the champion.

    `iteration` is None for the initial model, the first version and champion.
    Output `registration`: the metrics (`RegisterMetrics`) as a JSON file.
    """

    stage: ClassVar[str] = "register"
    experiment: str
    tracking_uri: TrackingUri
    registered_model: ModelName
    iteration: int | None
    policy: Policy
    pairs: Artifact
    dtype: str
    stages: dict[str, Artifact]
    recipe: str
    identity: Literal["v2"] = "v2"

    def kept_elsewhere(self, manifest: Manifest) -> bool:
        """Whether MLflow still has the runs, and no other recipe was recorded there since."""
        found = RegisterMetrics.of(manifest)
        if not tracking.holds(self.tracking_uri, [found.parent_run_id]):
            return False
        return tracking.holds(self.tracking_uri, [found.run_id], self.recorded)

    @property
    def recorded(self) -> tuple[str, str]:
        """The tag, name and value, of a run in which all of this is."""
        return "iris.recipe", json_digest(self.recipe)


class PublishSpec(Spec):
    """Keep files with a run in MLflow; the first is what people are shown.

    No output: the metrics (`PublishMetrics`) say where MLflow shows the first file.
    """

    stage: ClassVar[str] = "publish"
    tracking_uri: TrackingUri
    run_id: str
    files: list[Artifact]

    def kept_elsewhere(self, manifest: Manifest) -> bool:
        """Whether MLflow still has the run, and nothing was kept with it since."""
        return tracking.holds(self.tracking_uri, [self.run_id], (PUBLISHED, self.key()))
