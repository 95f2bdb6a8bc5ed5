"""The normaliser of the importance weights of IRIS, kept over the optimiser batches of a training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iris_core.config.objective import NormalizerName
from iris_core.objectives.losses import Rewards, log_mean_exp

MOMENTUM = 0.1


class Normalizer:
    """log Z of both sides' weights in IRIS, over whole optimiser batches.

    - `unit`: Z ≡ 1, the α-divergence form. Its gradient on synthetic responses vanishes as they become improbable.
    - `batch`: Z = mean e^{s r} over the optimiser batch, the literal formula.
    - `running`: exponential moving average over the batches so far, in log space (TERM's stochastic solver). Before the
      first batch it is 1, which is exact: at the first step r ≡ 0.
    - `anchored`: max(running, 1).

    In verified self-play Z of the synthetic side is the mean over samples weighted by D: over wrong ones alone. A side
    without any in a batch keeps its Z.

    Args:
        kind: one of the four above.
        order: α.
    """

    def __init__(self, kind: NormalizerName, order: float | Tensor):
        self.kind, self.order = kind, order
        self.state: Tensor | None = None  # log Z of annotated and synthetic weights, shape [2, ..., 1]

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the rewards of the whole optimiser batch must be known before the first backward."""
        return self.kind == "batch"

    def log_values(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """log Z of annotated and synthetic weights for the next batch, shape [..., 1], on the device of `like`."""
        if self.kind == "unit" or self.state is None:
            state = torch.zeros(2, 1)
        else:
            state = self.state.clamp(min=0.0) if self.kind == "anchored" else self.state
        annotated, synthetic = state.to(like).unbind(0)
        return annotated, synthetic

    def update(self, rewards: Rewards) -> None:
        """Adds the rewards of a whole optimiser batch (before the step for `batch`, else after it)."""
        new = self._log_means(rewards).cpu()
        if self.kind == "batch" or self.state is None:
            self.state = new
        else:
            self.state = torch.logaddexp(self.state + math.log1p(-MOMENTUM), new + math.log(MOMENTUM))

    def _log_means(self, rewards: Rewards) -> Tensor:
        """log mean e^{s r} of both sides, shape [2, ..., 1]."""
        annotated, synthetic = rewards.annotated.detach().double(), rewards.synthetic.detach().double()
        if rewards.weights is None:
            return torch.stack([log_mean_exp((self.order - 1) * annotated), log_mean_exp(self.order * synthetic)])
        weights = rewards.weights
        new = torch.stack(
            [
                weighted_log_mean_exp((self.order - 1) * annotated, weights.annotated.double()),
                weighted_log_mean_exp(self.order * synthetic.flatten(-2), weights.down.double().flatten(-2)),
            ]
        )
        before = torch.zeros_like(new) if self.state is None else self.state.to(new)
        return torch.where(new.isnan(), before, new)

    def state_dict(self) -> dict[str, list[list[float]] | None]:
        """The state for a checkpoint."""
        return {"log_normalizers": None if self.state is None else self.state.tolist()}

    def load_state_dict(self, state: dict[str, list[list[float]] | None]) -> None:
        """Restores a state from `state_dict`."""
        kept = state["log_normalizers"]
        self.state = None if kept is None else torch.tensor(kept, dtype=torch.float64)


def weighted_log_mean_exp(values: Tensor, weights: Tensor) -> Tensor:
    """log (Σ w·e^x / Σ w) over the last axis, which is kept; NaN where all weights are 0."""
    return torch.logsumexp(values + weights.log(), dim=-1, keepdim=True) - weights.sum(dim=-1, keepdim=True).log()
