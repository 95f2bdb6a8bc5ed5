"""The trainer: transformers' `Trainer` with an objective of self-play on packed rows.

An item of its data set is a whole optimiser batch, packed into rows under a token budget. `training_step` computes the
rows, or this rank's share of them. So a batch is the same set of pairs for every row budget and number of ranks, the
normaliser sees all of it, and a resumed run skips exactly the batches that are done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME

from iris_core.common.errors import TrainingError
from iris_core.common.progress import Progress
from iris_core.config import Packing
from iris_core.data.packing import Group, Row, build_rows
from iris_core.execution import distributed
from iris_core.modeling.scoring import IDLE, own, response_logprobs, waits
from iris_core.modeling.sharding import nothing_reached
from iris_core.objectives.losses import (
    Objective,
    Parameters,
    Rewards,
    SampleWeights,
    gradient_coefficients,
)
from iris_core.objectives.normalizer import Normalizer
from iris_core.store.units import Units
from iris_core.training.checkpoints import (
    HISTORY,
    NORMALIZER,
    SCHEDULE,
    newest_checkpoint,
    step_of,
)
from iris_core.training.gradients import sum_gradients
from iris_core.training.saving import Saver, overlaps
from iris_core.training.states import load_optimizer, load_weights
from iris_core.training.step_metrics import (
    check_step0,
    has_synthetic,
    peak_memory_gb,
    response_metrics,
    verified_metrics,
    weight_metrics,
)


class Batches(Dataset[list[Row]]):
    """Optimiser batches in training order, the same for the same seed.

    Args:
        groups: prompt and responses of each pair.
        epochs: passes over the pairs, each in its own random order.
        batch_size: pairs per batch; the last one of an epoch may be smaller.
        tokens_per_row: budget of a row.
        seed: of the orders.
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
        ranks = distributed.world_size()
        return build_rows(self.groups, self.batches[index], self.tokens_per_row, self.packing, ranks)


@dataclass(frozen=True)
class Settings:
    """What the objective needs besides the rows.

    Attributes:
        objective: the loss, and which rewards it is a function of.
        parameters: constants of the loss.
        opponent: log-probs of each pair under the opponent: the annotated response's cut, its rest, the synthetic
            response; shape [pairs, 3], or [pairs, 2 + n] with n samples.
        beta: reward scale β.
        normalizer: state of the normaliser.
        step0_tolerance: largest mean |log-ratio| per token at step 0, in nats; None if the policy is not the opponent.
        rate: share of the peak learning rate at each step.
        weights: of all responses, by a verifier's verdicts; None in plain self-play.
        precision: context manager around each forward.
    """

    objective: Objective
    parameters: Parameters
    opponent: Tensor
    beta: float
    normalizer: Normalizer
    step0_tolerance: float | None
    rate: Callable[[int], float]
    weights: SampleWeights | None = None
    precision: Callable[[], AbstractContextManager[object]] = nullcontext


class SelfPlayTrainer(Trainer):
    """Trains a policy to distinguish annotated from synthetic responses.

    Args:
        settings: inputs of the objective.
        units: of the stage; each checkpoint is one.
        progress: counts the steps.
        arguments: as for `Trainer`.
    """

    def __init__(self, settings: Settings, units: Units, progress: Progress, **arguments: Any):
        super().__init__(data_collator=lambda batches: batches[0], **arguments)
        self.settings, self.units, self.progress = settings, units, progress
        self.work = Path(self.args.output_dir)
        self.history = self.work / HISTORY
        self.saver = Saver(units, self.work, overlaps(self.args.device))
        self.model_accepts_loss_kwargs = False
        self._parameters = settings.parameters  # of the current optimiser batch
        self._metrics: dict[str, float] = {}

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Trains; the last checkpoint is written when this ends."""
        with self.saver:
            return super().train(*arguments, **options)

    def resume(self) -> str | None:
        """Takes over the state of the newest complete checkpoint, and returns its path; None where there is none."""
        newest = newest_checkpoint(self.work, self.units)
        if newest is None:
            return None
        self.settings.normalizer.load_state_dict(json.loads((newest / NORMALIZER).read_text()))
        self.progress.advance(step_of(newest))
        return str(newest)

    def get_train_dataloader(self) -> DataLoader[list[Row]]:
        """All batches, in order, on every rank: accelerate would split them."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.data_collator)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The learning rate by `settings.rate`; the first step of transformers' own schedules has a rate of 0."""
        scheduler = LambdaLR(optimizer or self.optimizer, self.settings.rate)
        self.lr_scheduler = scheduler
        return scheduler

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over the rows of one optimiser batch; returns its loss."""
        started = time.monotonic()
        if model.training != self.args.gradient_checkpointing:  # only gradient checkpointing needs training mode
            model.train(self.args.gradient_checkpointing)
        pairs = torch.cat([row.pairs for row in inputs]).to(model.device)
        lengths = torch.cat([row.lengths for row in inputs]).to(model.device)
        normalizer = self.settings.normalizer
        if normalizer.needs_whole_batch:
            with torch.no_grad():
                logprobs = self._share(inputs, lambda row: self._logprobs(model, row))
            normalizer.update(self._rewards(logprobs, pairs))
        self._parameters = replace(
            self.settings.parameters,
            log_normalizers=normalizer.log_values(self.settings.opponent.to(pairs.device)),
            mean_tokens=self._weighted_tokens(lengths, pairs) / len(pairs),
        )

        def forward_and_backward(row: Row) -> Tensor:
            loss, logprobs = self.compute_loss(model, row, return_outputs=True)
            self.accelerator.backward(loss / len(pairs))
            return logprobs.detach()

        logprobs = self._share(inputs, forward_and_backward)
        sum_gradients(model)
        tokens_per_second = sum(len(row.input_ids) for row in inputs) / (time.monotonic() - started)
        return self._conclude(logprobs, pairs, lengths, tokens_per_second)

    def _weighted_tokens(self, lengths: Tensor, pairs: Tensor) -> float:
        """Tokens whose likelihood is raised: of annotated responses, and of samples by their weight U."""
        tokens = lengths[:, :2].sum()
        if self.settings.weights is not None:
            tokens = tokens + (self.settings.weights.of(pairs).up * lengths[:, 2:]).sum()
        return float(tokens.item())

    def _share(self, rows: list[Row], work: Callable[[Row], Tensor]) -> Tensor:
        """Log-probs that `work` finds for each row, shape [pairs, sums]; each rank does its share of the rows."""
        found = [torch.zeros_like(row.lengths, dtype=torch.float32, device=self.args.device) for row in rows]
        for place, row in zip(own(found), own(rows), strict=True):
            place.copy_(work(row.to(self.args.device)))
        if waits(self.model, rows):
            self._wait()
        together = torch.cat(found)
        distributed.all_reduce(together)
        return together

    def _wait(self) -> None:
        """Helps the other ranks to compute one more row, without an effect on the gradients."""
        with nothing_reached(self.model):
            logprobs = self._logprobs(self.model, IDLE.to(self.args.device))
            if torch.is_grad_enabled():
                self.accelerator.backward(0 * logprobs.sum())

    def compute_loss(
        self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the losses of one row's pairs and, with `return_outputs`, the log-probs of its responses."""
        logprobs = self._logprobs(model, inputs)
        rewards = self._rewards(logprobs, inputs.pairs)
        loss = self.settings.objective.loss(rewards, self._parameters).sum()
        return (loss, logprobs) if return_outputs else loss

    def _logprobs(self, model: PreTrainedModel, row: Row) -> Tensor:
        with self.settings.precision():
            return response_logprobs(model, row)

    def _rewards(self, logprobs: Tensor, pairs: Tensor) -> Rewards:
        """The rewards that the objective is a function of, from log-probs of shape [pairs, sums]."""
        objective = self.settings.objective
        if objective.relative:
            logprobs = self._log_ratios(logprobs, pairs)
        if objective.scaled:
            logprobs = self.settings.beta * logprobs
        if self.settings.weights is not None:
            weights = self.settings.weights.of(pairs)
            return Rewards(logprobs[:, 0], logprobs[:, 2:], rest=logprobs[:, 1], weights=weights)
        cut, rest, *others = logprobs.unbind(dim=1)
        synthetic, initial = [*others, None, None][:2]
        return Rewards(cut, torch.zeros_like(cut) if synthetic is None else synthetic, initial, rest)

    def _log_ratios(self, logprobs: Tensor, pairs: Tensor) -> Tensor:
        """log p_θ − log p_t of cut, rest and the synthetic responses that the objective has, shape [pairs, sums]."""
        compared = logprobs[:, : self.settings.opponent.shape[1]]  # nothing of the initial model's responses
        return compared - self.settings.opponent.to(compared.device)[pairs, : compared.shape[1]]

    def _conclude(self, logprobs: Tensor, pairs: Tensor, lengths: Tensor, tokens_per_second: float) -> Tensor:
        """Checks the batch, updates the normaliser and keeps the metrics of the step; returns the loss."""
        settings = self.settings
        rewards, ratios = self._rewards(logprobs, pairs), self._log_ratios(logprobs, pairs)
        loss = settings.objective.batch_loss(rewards, self._parameters)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"training: the loss is {loss.item()} at step {self.state.global_step}: lower training.learning_rate "
                "or objective.beta; the work up to the last checkpoint is kept"
            )
        if self.state.global_step == 0:
            check_step0(ratios, lengths[:, : ratios.shape[1]], settings.step0_tolerance)
        coefficients = gradient_coefficients(settings.objective, rewards, self._parameters)
        if not settings.normalizer.needs_whole_batch:
            settings.normalizer.update(rewards)
        self._metrics = {
            "loss": loss.item(),
            **self._response_metrics(coefficients, ratios, logprobs, lengths, rewards.weights),
            "tokens_per_second": tokens_per_second,
            "memory_gb": peak_memory_gb(),
        }
        return loss.detach()

    def _response_metrics(
        self,
        coefficients: tuple[Tensor, Tensor],
        ratios: Tensor,
        logprobs: Tensor,
        lengths: Tensor,
        weights: SampleWeights | None,
    ) -> dict[str, float]:
        (w, v), rewards = coefficients, self.settings.beta * ratios
        if weights is not None:
            return verified_metrics(w, v, rewards, logprobs, lengths, weights)
        return {
            **weight_metrics("annotated", w),
            **weight_metrics("synthetic", v[has_synthetic(lengths)]),
            **response_metrics(rewards, logprobs, lengths),
        }

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Appends the step's row to the history and reports progress."""
        super().log(logs, *args, **kwargs)
        self.saver.check()
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
        """Saves a checkpoint, with the normaliser's state and the history so far."""
        texts = {
            TRAINER_STATE_NAME: json.dumps(asdict(self.state)),
            NORMALIZER: json.dumps(self.settings.normalizer.state_dict()),
            SCHEDULE: json.dumps(self.lr_scheduler.state_dict()),
            HISTORY: self.history.read_text(encoding="utf-8") if distributed.rank() == 0 else "",
        }
        self.saver.save(self.state.global_step, self.model, self.optimizer.optimizer, texts)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.model, self.optimizer.optimizer)
            self.lr_scheduler.load_state_dict(json.loads((Path(checkpoint) / SCHEDULE).read_text()))
            for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
