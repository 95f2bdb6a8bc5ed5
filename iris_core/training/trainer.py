"""The trainer: transformers' `Trainer` with an objective of self-play on packed rows.

One item of its data set is a whole optimiser batch, already packed into rows under a token budget; `training_step`
walks the rows, or this rank's share of them (`iris_core.execution.distributed`; the `Trainer` itself knows of one process only). So a batch is the same set of pairs whatever the micro-batches are, the normaliser sees all of it, and
a resumed run skips exactly the batches behind it.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer

from iris_core.common.errors import TrainingError
from iris_core.common.progress import Progress
from iris_core.config.experiment import Packing
from iris_core.data.packing import Group, Row, build_rows
from iris_core.execution import distributed
from iris_core.modeling.scoring import response_logprobs
from iris_core.objectives.losses import (
    Normalizer,
    Objective,
    Parameters,
    Rewards,
    effective_sample_size,
    pushes,
)
from iris_core.store.units import NEW, Units

HISTORY = "history.jsonl"
NORMALIZER = "normalizer.json"  # its state, in a checkpoint
KEPT_CHECKPOINTS = 2  # an older one, for where the newest is damaged


class Batches(Dataset[list[Row]]):
    """Optimiser batches in training order, the same for the same seed.

    Args:
        groups: prompt and responses of every pair.
        epochs: passes over them, each in an order of its own.
        batch_size: pairs per batch; the last one of an epoch may be smaller.
        tokens_per_row: budget of a row.
        seed: of the order.
        packing: how rows are computed.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        epochs: int,
        batch_size: int,
        tokens_per_row: int,
        seed: int,
        packing: Packing = "packed",
    ):
        self.groups, self.tokens_per_row, self.packing = groups, tokens_per_row, packing
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(groups), generator=generator).tolist() for _ in range(epochs)]
        self.batches = [
            order[start : start + batch_size] for order in orders for start in range(0, len(groups), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Row]:
        return build_rows(self.groups, self.batches[index], self.tokens_per_row, self.packing)


@dataclass(frozen=True)
class Settings:
    """What the objective needs besides the rows.

    Attributes:
        objective: the loss, and which rewards it is a function of.
        parameters: its constants.
        opponent: log-probs of each pair under the opponent: the annotated response's cut, its rest, the synthetic response;
            shape [pairs, 3].
        beta: reward scale β.
        normalizer: state of the normaliser.
        step0_tolerance: largest mean |log-ratio| per token at step 0, in nats; None if the policy is not the opponent.
        rate: share of the peak learning rate at each step.
        precision: context manager around every forward.
    """

    objective: Objective
    parameters: Parameters
    opponent: Tensor
    beta: float
    normalizer: Normalizer
    step0_tolerance: float | None
    rate: Callable[[int], float]
    precision: Callable[[], AbstractContextManager[object]] = nullcontext


class SelfPlayTrainer(Trainer):
    """Trains a policy to tell annotated from synthetic responses.

    Args:
        settings: the objective's inputs.
        units: of the stage; checkpoints are among them.
        progress: counts the steps.
        arguments: as for `Trainer`.
    """

    def __init__(self, settings: Settings, units: Units, progress: Progress, **arguments: Any):
        super().__init__(data_collator=lambda items: items[0], **arguments)
        self.settings, self.units, self.progress = settings, units, progress
        self.work = Path(self.args.output_dir)
        self.history = self.work / HISTORY  # JSON Lines, a row per optimiser step
        self.model_accepts_loss_kwargs = False
        self._parameters = settings.parameters  # of the current optimiser batch
        self._metrics: dict[str, float] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The course of the learning rate in `settings.rate`; transformers' own begins with a step at 0."""
        scheduler = LambdaLR(optimizer or self.optimizer, self.settings.rate)
        self.lr_scheduler = scheduler
        return scheduler

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over the rows of one optimiser batch; returns its loss."""
        started = time.monotonic()
        if model.training != self.args.gradient_checkpointing:  # nothing else here needs it
            model.train(self.args.gradient_checkpointing)
        pairs = torch.cat([row["pairs"] for row in inputs]).to(model.device)
        lengths = torch.cat([row["lengths"] for row in inputs]).to(model.device)
        normalizer = self.settings.normalizer
        if normalizer.needs_whole_batch:
            with torch.no_grad():
                seen = self._share(inputs, lambda row: self._logprobs(model, row))
            normalizer.see(self._rewards(seen, pairs))
        self._parameters = replace(
            self.settings.parameters,
            log_normalizers=normalizer.log_values(self.settings.opponent.to(pairs.device)),
            mean_tokens=lengths[:, :2].sum().item() / len(pairs),
        )

        def forward_and_backward(row: Row) -> Tensor:
            loss, logprobs = self.compute_loss(model, row, return_outputs=True)
            self.accelerator.backward(loss / len(pairs))
            return logprobs.detach()

        logprobs = self._share(inputs, forward_and_backward)
        _add_gradients_up(model)
        tokens_per_second = sum(len(row["input_ids"]) for row in inputs) / (time.monotonic() - started)
        return self._conclude(logprobs, pairs, lengths, tokens_per_second)

    def _share(self, rows: list[Row], work: Callable[[Row], Tensor]) -> Tensor:
        """`work` on this rank's rows, and what all ranks found: log-probs of shape [pairs, sums]."""
        shape = (sum(len(row["pairs"]) for row in rows), rows[0]["lengths"].shape[1])
        found, start = torch.zeros(shape, device=self.args.device), 0
        for number, row in enumerate(rows):
            if number % distributed.world_size() == distributed.rank():
                found[start : start + len(row["pairs"])] = work(self._prepare_inputs(row))
            start += len(row["pairs"])
        distributed.all_reduce([found])
        return found

    def compute_loss(
        self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the losses of one row's pairs and, if asked for, the log-probs of its responses."""
        logprobs = self._logprobs(model, inputs)
        rewards = self._rewards(logprobs, inputs["pairs"])
        loss = self.settings.objective.loss(rewards, self._parameters).sum()
        return (loss, logprobs) if return_outputs else loss

    def _logprobs(self, model: PreTrainedModel, row: Row) -> Tensor:
        with self.settings.precision():
            return response_logprobs(model, row)

    def _rewards(self, logprobs: Tensor, pairs: Tensor) -> Rewards:
        """What the objective is a function of."""
        objective = self.settings.objective
        if objective.relative:
            logprobs = self._log_ratios(logprobs, pairs)
        if objective.scaled:
            logprobs = self.settings.beta * logprobs
        cut, rest, *others = logprobs.unbind(dim=1)
        synthetic, initial = [*others, None, None][:2]
        return Rewards(cut, torch.zeros_like(cut) if synthetic is None else synthetic, initial, rest)

    def _log_ratios(self, logprobs: Tensor, pairs: Tensor) -> Tensor:
        """log p_θ − log p_t of cut, rest and synthetic response (of the annotated one only where no others are seen)."""
        sides = logprobs[:, :3]
        return sides - self.settings.opponent.to(sides.device)[pairs, : sides.shape[1]]

    def _conclude(self, logprobs: Tensor, pairs: Tensor, lengths: Tensor, tokens_per_second: float) -> Tensor:
        """Checks the batch, updates the normaliser and notes the metrics of the step."""
        settings = self.settings
        rewards, ratios = self._rewards(logprobs, pairs), self._log_ratios(logprobs, pairs)
        loss = settings.objective.batch_loss(rewards, self._parameters)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"training: the loss is {loss.item()} at step {self.state.global_step}: lower training.learning_rate "
                "or objective.beta; the work up to the last checkpoint is kept"
            )
        if self.state.global_step == 0:
            _check_step0(ratios, lengths[:, :3], settings.step0_tolerance)
        w, v = pushes(settings.objective, rewards, self._parameters)
        v = v[(lengths[:, 2:3] > 0).any(dim=1)]  # of pairs with a synthetic response
        if not settings.normalizer.needs_whole_batch:
            settings.normalizer.see(rewards)
        self._metrics = {
            "loss": loss.item(),
            **_weights("annotated", w),
            **_weights("synthetic", v),
            **_sides(settings.beta * ratios, logprobs, lengths),
            "tokens_per_second": tokens_per_second,
            "memory_gb": _peak_memory_gb(),
        }
        return loss.detach()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Writes a step's row to the history and moves the progress on."""
        super().log(logs, *args, **kwargs)
        if "grad_norm" not in logs or distributed.rank():
            return
        row = {
            "step": self.state.global_step,
            "time": time.time(),
            "order": self.settings.parameters.order,
            "learning_rate": logs["learning_rate"],
            "grad_norm": float(logs["grad_norm"]),
            **self._metrics,
        }
        if not math.isfinite(row["grad_norm"]):
            raise TrainingError(
                f"training: the gradient is {row['grad_norm']} at step {row['step']}: lower training.learning_rate; "
                "the work up to the last checkpoint is kept"
            )
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.progress.advance(loss=row["loss"], tokens_per_second=row["tokens_per_second"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint as a unit, with the normaliser's state and the history so far; the oldest one goes."""
        with self.units.writing(self.work / f"checkpoint-{self.state.global_step}") as place:
            super()._save_checkpoint(model, trial)
            state = json.dumps(self.settings.normalizer.state_dict())
            (place / NORMALIZER).write_text(state, encoding="utf-8")
            shutil.copyfile(self.history, place / HISTORY)
        for old in checkpoints(self.work)[:-KEPT_CHECKPOINTS]:
            self.units.remove(old)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.units.folder / NEW)  # where units are written


def checkpoints(work: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last."""
    found = [path for path in work.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """After how many optimiser steps a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _add_gradients_up(model: PreTrainedModel) -> None:
    if distributed.world_size() == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = torch.tensor([float(each.grad is not None) for each in trained], device=model.device)
    distributed.all_reduce([reached])  # what no rank has reached, such as a vision tower, takes no step and no decay
    moved = [each for each, ranks in zip(trained, reached.tolist(), strict=True) if ranks]
    for parameter in moved:
        if parameter.grad is None:  # a rank without a row
            parameter.grad = torch.zeros_like(parameter)
    distributed.all_reduce([parameter.grad for parameter in moved])


def _weights(side: str, weights: Tensor) -> dict[str, float]:
    """Effective share and largest of one side's per-pair gradient coefficients; 0 where no pair has any."""
    if not len(weights):
        return {f"ess/{side}": 0.0, f"weight_max/{side}": 0.0}
    share = effective_sample_size(weights).item() / len(weights)
    return {f"ess/{side}": share, f"weight_max/{side}": weights.max().item()}


def _sides(rewards: Tensor, logprobs: Tensor, lengths: Tensor) -> dict[str, float]:
    """Mean reward and log-prob per token of annotated and synthetic responses, and the margin where there are both.

    Rewards are those of the comparison; log-probs those of whole responses.
    """
    annotated = logprobs[:, :2].sum() / lengths[:, :2].sum()
    metrics = {
        "reward/annotated": rewards[:, 0].mean().item(),
        "logprob/annotated": annotated.item(),
    }
    both = (lengths[:, 2:3] > 0).any(dim=1)
    if both.any():
        synthetic, margin = rewards[both, 2], rewards[both, 0] - rewards[both, 2]
        metrics |= {
            "reward/synthetic": synthetic.mean().item(),
            "logprob/synthetic": (logprobs[:, 2].sum() / lengths[:, 2].sum()).item(),
            "reward/margin": margin.mean().item(),
            "reward/accuracy": (margin > 0).float().mean().item(),
        }
    return metrics


def _check_step0(log_ratio: Tensor, tokens: Tensor, tolerance: float | None) -> None:
    """The policy must be the opponent before the first update: |log-ratio| per token within `tolerance` nats."""
    if tolerance is None:
        return
    drift = (log_ratio.abs().sum() / tokens.sum()).item()
    if not drift <= tolerance:
        raise TrainingError(
            f"training: at step 0 the policy differs from its opponent by {drift:.2g} nats a token (at most {tolerance:.2g} "
            "is rounding): the opponent's log-probabilities come from another model, adapter, chat template or dtype; "
            "remove the folder of this stage and run again"
        )


def _peak_memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
