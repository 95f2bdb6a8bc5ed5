"""The trainer of a stage, from its spec."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from iris_core.common.progress import Progress
from iris_core.data.packing import Group
from iris_core.modeling.scoring import causal_of
from iris_core.objectives.losses import OBJECTIVES, Parameters, SampleWeights
from iris_core.objectives.normalizer import Normalizer
from iris_core.objectives.verified import VERIFIED
from iris_core.pipeline.specs import TrainSpec
from iris_core.store.folders import WORK
from iris_core.store.units import Units
from iris_core.training.optimizers import RMSprop, learning_rate_share
from iris_core.training.policy import precision, tokens_per_row
from iris_core.training.trainer import Batches, SelfPlayTrainer, Settings

STEP0_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
OPTIMIZERS = {"rmsprop": RMSprop, "adamw": torch.optim.AdamW}


def build_trainer(
    spec: TrainSpec,
    model: PreTrainedModel,
    groups: list[Group],
    opponent: Tensor,
    units: Units,
    weights: SampleWeights | None = None,
) -> SelfPlayTrainer:
    """The trainer on `groups`; its checkpoints are units.

    Args:
        spec: of the stage.
        model: the policy at the start.
        groups: of the pairs to train on.
        opponent: their log-probs under the opponent, shape [pairs, sums].
        units: of the stage.
        weights: of the responses, by a verifier's verdicts; None in plain self-play.
    """
    training = spec.training
    responses = OBJECTIVES[spec.objective.name].responses
    seen = [group.first(responses) for group in groups] if weights is None else groups
    batches = Batches(seen, training.epochs, training.batch_size, tokens_per_row(spec), spec.seed, spec.packing)
    # the Trainer wraps no model that has been loaded on several ranks; on ours, weights and gradients are our part
    causal_of(model)._is_distributed_loading_by_transformers = True
    trainer = SelfPlayTrainer(
        _settings(spec, weights, opponent, len(batches)),
        units,
        Progress("train", len(batches)),
        model=model,
        args=_arguments(spec, len(batches), units.folder / WORK),
        train_dataset=batches,
        optimizer_cls_and_kwargs=(OPTIMIZERS[training.optimizer], _optimizer_settings(spec)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _optimizer_settings(spec: TrainSpec) -> dict[str, Any]:
    """One tensor at a time: all at once, as torch does on GPUs, needs copies as large as the trained weights."""
    return {"lr": spec.learning_rate, "foreach": False}


def _settings(spec: TrainSpec, weights: SampleWeights | None, opponent: Tensor, steps: int) -> Settings:
    training, starts_as_opponent = spec.training, spec.policy == spec.opponent
    return Settings(
        objective=(OBJECTIVES if weights is None else VERIFIED)[spec.objective.name],
        parameters=Parameters.of(spec.objective, spec.order),
        opponent=opponent,
        beta=spec.objective.beta,
        normalizer=Normalizer(spec.objective.normalizer, spec.order),
        step0_tolerance=STEP0_TOLERANCE[spec.dtype] if starts_as_opponent else None,
        rate=functools.partial(
            learning_rate_share,
            steps=steps,
            warmup_ratio=training.warmup_ratio,
            kind=training.lr_scheduler,
        ),
        weights=weights,
        precision=precision(spec),
    )


def _arguments(spec: TrainSpec, steps: int, work: Path) -> TrainingArguments:
    training = spec.training
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=spec.learning_rate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        logging_steps=1,
        save_strategy="steps",
        save_steps=training.checkpoint_every,
        save_only_model=True,  # for the Trainer, which refuses to save the rest of a sharded model; we do
        seed=spec.seed,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a process trains on one device; each rank is a process
    return arguments


def make_deterministic() -> None:
    """Makes a GPU give the same gradients for the same rows: Flash Attention's backward sums in a fixed order.

    This comes before the first product of matrices, for which cuBLAS takes its workspace: a resumed run has the same.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.cuda.is_available():
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True, warn_only=True)
