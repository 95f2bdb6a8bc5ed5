"""What a user can set: one `Experiment`.

It is read from a recipe (`iris_core.config.recipe`), or given as parameters of a flow, by hand or in the Prefect UI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from iris_core.common.errors import ConfigError
from iris_core.common.mirrors import local_root
from iris_core.common.uris import sqlite_uri
from iris_core.config.data import DataPart
from iris_core.config.explain import Place, explain
from iris_core.config.generation import GenerationPart
from iris_core.config.objective import ObjectivePart
from iris_core.config.rules import (
    LONGEST_NAME,
    ModelName,
    Part,
    PathText,
    StorePath,
    TrackingUri,
)
from iris_core.config.schedule import SchedulePart
from iris_core.config.verification import VerificationPart

LEARNING_RATES = {"lora": 1e-4, "full": 3e-6}  # measured, see docs/objective.md

Benchmark = Literal["gsm8k", "math", "musr", "mmlu", "mmlu_pro", "gpqa", "hellaswag", "winogrande", "bbh", "ifeval"]
TEN: tuple[Benchmark, ...] = Benchmark.__args__  # type: ignore[attr-defined]


class ModelPart(Part):
    """The supervised fine-tuned model that self-play starts from."""

    path: PathText = Field(description="Folder with safetensors and a tokenizer, or a name on the Hugging Face hub.")
    revision: str | None = Field(None, description="Commit or tag on the hub; the resolved commit is recorded.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="The dtype of the weights in memory; auto: bfloat16 where the hardware multiplies it at least as "
        "fast as float32.",
    )
    trust_remote_code: bool = Field(False, description="Run the Python code in the model's folder.")


_ONE_MODE = "policy and opponent are scored in the same mode, without dropout"
_VLLM = "vLLM serves no adapter with it"
UNSUPPORTED_LORA = {
    "dropout": _ONE_MODE,
    "lora_dropout": _ONE_MODE,
    "use_dora": _VLLM,
    "modules_to_save": _VLLM,
    "bias": _VLLM,
    "lora_bias": _VLLM,
    "init_lora_weights": "the first update is 0, so that the policy starts as the opponent",
}


class LoraPart(Part):
    """The low-rank adapter (arXiv 2106.09685)."""

    rank: int = Field(16, ge=1, le=512, description="Rank r of the update; vLLM serves up to 512.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    use_rslora: bool = Field(False, description="Multiply by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    targets: str | list[str] = Field(
        "all-linear",
        description="A list of names of linear layers, a regular expression for whole names, or all-linear.",
    )

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key in UNSUPPORTED_LORA:
                raise ValueError(f"{key} is not supported: {UNSUPPORTED_LORA[key]}: leave it out")
        return given

    @field_validator("targets")
    @classmethod
    def _named(cls, targets: str | list[str]) -> str | list[str]:
        if not targets or not all(targets):
            raise ValueError("names no layer: give names of linear layers, or all-linear")
        return targets


Packing = Literal["packed", "separate"]
KINDS = ("a number", "a list")  # the members of `Rates`, as pydantic names them in the location of an error
Rate = Annotated[float, Field(gt=0, lt=1)]
Rates = Annotated[
    Annotated[Rate, Tag(KINDS[0])] | Annotated[list[Rate], Field(min_length=1), Tag(KINDS[1])],
    Discriminator(lambda value: KINDS[isinstance(value, list)]),
]


class TrainingPart(Part):
    """How the policy is fine-tuned in one iteration."""

    method: Literal["lora", "full"] = Field("lora", description="Train an adapter, or all weights.")
    lora: LoraPart = Field(default_factory=LoraPart, description="Adapter settings for method lora.")
    epochs: int = Field(2, ge=1, description="Passes over the pairs in one iteration.")
    batch_size: int = Field(64, ge=1, description="Pairs per optimiser step, over all devices.")
    packing: Literal["auto", "packed", "separate"] = Field(
        "auto",
        description="Rows of a batch: packed (fast) or separate sequences (any causal model); auto: packed where it is "
        "verified for the model; see docs/models.md.",
    )
    tokens_per_batch: int = Field(4096, ge=16, description="Tokens in one micro-batch row; lower it to save memory.")
    optimizer: Literal["rmsprop", "adamw"] = Field("rmsprop", description="Update rule.")
    learning_rate: Rates = Field(
        default_factory=lambda given: LEARNING_RATES.get(given.get("method"), LEARNING_RATES["lora"]),
        description="Peak learning rate, or a list with one for each iteration, the last for all that follow; left "
        "out: 1e-4 for lora, 3e-6 for full.",
    )
    learning_rate_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on the learning rate from one iteration to the next."
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of an iteration's steps with rising learning rate.")
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Learning rate after the warm-up."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward to save memory.")
    sharding: Literal["auto", "none", "full", "hybrid"] = Field(
        "auto",
        description="What several GPUs share of the weights, gradients and optimizer states. none: nothing, each GPU "
        "holds all; full: each holds its part; hybrid: the GPUs of a machine share, machines do not; auto: none where "
        "that fits.",
    )
    checkpoint_every: int = Field(
        50, ge=1, description="Optimiser steps between checkpoints; a resumed run starts from the last one."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> TrainingPart:
        if isinstance(self.learning_rate, list) and self.learning_rate_decay != 1:
            raise ValueError(
                f"learning_rate is a list, and learning_rate_decay {self.learning_rate_decay} would change it: leave "
                "out learning_rate_decay, or give one learning_rate"
            )
        return self

    def rate(self, iteration: int) -> float:
        """The peak learning rate of an iteration."""
        if isinstance(self.learning_rate, list):
            return self.learning_rate[min(iteration, len(self.learning_rate) - 1)]
        return self.learning_rate * self.learning_rate_decay**iteration


class EvaluationPart(Part):
    """Which benchmarks score the model, and how."""

    benchmarks: list[Benchmark] = Field(list(TEN), description="Which of the ten benchmarks to run.")
    data_dir: PathText | None = Field(
        None,
        description="Local mirror of the data sets, or `miniature` for the embedded one; left out: the hub.",
    )
    backend: Literal["auto", "vllm", "hf"] = Field("auto", description="Engine under lm-evaluation-harness.")
    limit: int | None = Field(None, ge=1, description="Items per task; left out: all of them.")
    apply_chat_template: bool = Field(False, description="Wrap benchmark prompts in the model's chat template.")
    max_gen_tokens: int | None = Field(None, ge=1, description="Limit of generated tokens; left out: each task's own.")
    initial: bool = Field(True, description="Score the initial model too, for comparison.")

    @field_validator("benchmarks")
    @classmethod
    def _once(cls, names: list[Benchmark]) -> list[Benchmark]:
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(doubled)} more than once: name each benchmark once")
        return names


STORE_NAMES = ("objects", "mlflow.db", "mlflow-artifacts")  # what a store holds beside experiments


class TrackingPart(Part):
    """Where runs and model versions go."""

    uri: TrackingUri | None = Field(None, description="MLflow tracking URI; left out: SQLite inside the store.")
    registered_model: ModelName | None = Field(
        None, description="Name in the model registry; left out: the experiment's name."
    )
    patience: float = Field(
        600.0,
        ge=0,
        description="Seconds that a run waits for MLflow or Prefect when they stop answering, or a database is locked.",
    )


class ExecutionPart(Part):
    """Where and on how many devices stages run. It decides no result: no key of a stage holds it."""

    launcher: Literal["local", "ray"] = Field(
        "local", description="local: on the machine of the run; ray: on the nodes of a Ray cluster (`iris[ray]`)."
    )
    nodes: int = Field(1, ge=1, description="Machines that one stage uses; more than 1 needs the launcher ray.")
    gpus_per_node: int | None = Field(
        None,
        ge=1,
        description="GPUs that a stage uses on each machine, one process each; left out: all of them. Without GPUs: "
        "processes on the CPU, 1 where left out.",
    )
    tensor_parallel: int = Field(
        1, ge=1, description="GPUs that hold one sampling engine together, for models that do not fit on one."
    )
    ray_address: str | None = Field(
        None, description="Of the Ray cluster, as `auto` or `host:6379`; left out: RAY_ADDRESS, or the local cluster."
    )

    @model_validator(mode="after")
    def _reachable(self) -> ExecutionPart:
        if self.launcher == "local" and self.nodes > 1:
            raise ValueError(f"nodes is {self.nodes}, but the launcher local uses one machine: set launcher to ray")
        if self.gpus_per_node and self.gpus_per_node % self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel is {self.tensor_parallel}, which does not divide gpus_per_node "
                f"{self.gpus_per_node}: choose a divisor"
            )
        return self


class Experiment(Part):
    """A whole self-play experiment: model, data and everything else that decides its outcome."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=LONGEST_NAME,
        description="Name, a folder in the store and a run in MLflow.",
    )
    iterations: int = Field(3, ge=1, le=100, description="Rounds of generate, train, evaluate, schedule, register.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seeds sampling, shuffling and initialisation.")
    store: StorePath = Field(
        "./iris-store", description="Folder for everything the experiment produces, or s3://bucket/prefix."
    )
    model: ModelPart = Field(description="The model that self-play starts from.")
    data: DataPart = Field(description="The annotated pairs.")
    generation: GenerationPart = Field(default_factory=GenerationPart, description="How the opponent answers.")
    verification: VerificationPart = Field(
        default_factory=VerificationPart,
        validate_default=True,
        exclude_if=lambda part: not part.judges,
        description="The verifier of responses.",
    )
    objective: ObjectivePart = Field(default_factory=ObjectivePart, validate_default=True, description="The loss.")
    schedule: SchedulePart = Field(
        default_factory=SchedulePart, validate_default=True, description="The order α over iterations."
    )
    training: TrainingPart = Field(default_factory=TrainingPart, description="Fine-tuning.")
    evaluation: EvaluationPart = Field(default_factory=EvaluationPart, description="Benchmarks.")
    tracking: TrackingPart = Field(default_factory=TrackingPart, description="MLflow.")
    execution: ExecutionPart = Field(default_factory=ExecutionPart, description="Devices and machines.")

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name.lower() in STORE_NAMES or name.lower().startswith("mlflow.db"):
            raise ValueError("the store uses this name itself: choose another")
        return name

    @field_validator("verification")
    @classmethod
    def _fits_data(cls, verification: VerificationPart, info: ValidationInfo) -> VerificationPart:
        data, generation = info.data.get("data"), info.data.get("generation")
        uses = {
            "data.prompts_path": data is not None and data.prompts_path is not None,
            "data.reference_column": data is not None and data.reference_column is not None,
            "generation.samples": generation is not None and generation.responses > 1,
        }
        needing = [name for name, used in uses.items() if used]
        if needing and not verification.judges:
            raise ValueError(
                f"kind is none, and {needing[0]} needs a verifier: set verification.kind, or leave {needing[0]} out"
            )
        if verification.kind == "answer" and data is not None and data.answer_pattern is None:
            raise ValueError("kind is answer, and data.answer_pattern is missing: set it")
        if verification.needs_reference and uses["data.prompts_path"] and not uses["data.reference_column"]:
            raise ValueError(
                f"kind is {verification.kind}, which compares with a reference, and the prompts in data.prompts_path "
                "have no annotated response: set data.reference_column, or leave data.prompts_path out"
            )
        return verification

    @field_validator("objective")
    @classmethod
    def _resolved(cls, objective: ObjectivePart, info: ValidationInfo) -> ObjectivePart:
        verification = info.data.get("verification")
        return objective.resolved(verification.judges) if verification else objective

    @field_validator("schedule")
    @classmethod
    def _ordered(cls, schedule: SchedulePart, info: ValidationInfo) -> SchedulePart:
        objective = info.data.get("objective")
        return schedule.resolved(bool(objective and objective.verified))

    @model_validator(mode="after")
    def _judged(self) -> Experiment:
        if self.objective.learns_from_verdicts and self.data.synthetic.equal != "keep":
            raise ValueError(
                f"data.synthetic.equal is {self.data.synthetic.equal}, and {self.objective.name} learns from verdicts, "
                "where a response that is the annotated one counts like any other: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _filled_in(self) -> Experiment:
        generation, objective = self.generation.resolved(self.objective), self.objective.weighed(self.schedule.is_one)
        return self.model_copy(update={"generation": generation, "objective": objective})

    @property
    def tracking_uri(self) -> str:
        """The MLflow URI: as set, or a SQLite file in the store."""
        return self.tracking.uri or sqlite_uri(local_root(self.store) / "mlflow.db")

    @property
    def registered_model(self) -> str:
        """The name of the registered model: as set, or the experiment's."""
        return self.tracking.registered_model or self.name


def parse_experiment(content: Mapping[str, object], place: str | Place = "experiment") -> Experiment:
    """Checks `content` and returns it as an Experiment.

    Args:
        content: nested settings.
        place: where they come from, or a function from a field's location to that. It begins each line of an error.

    Raises:
        ConfigError: names each wrong field, its value and the remedy.
    """
    try:
        return Experiment.model_validate(content)
    except pydantic.ValidationError as error:
        where: Place = place if callable(place) else lambda location: place
        raise ConfigError(explain(error, Experiment, where)) from None
