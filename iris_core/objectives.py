"""The IRIS objective of order α: tilted risks, their exponential weights, and the normalisers.

With rewards r = β·[log p_θ(y|x) − log p_t(y|x)] of annotated responses y and r' of synthetic responses y',

    L_α = −T_{α−1}[r] + T_α[r'],        T_s[r] = (1/s)·log E e^{s r}

(the variational formula for Rényi divergences, arXiv 2007.03814; tilted risks, arXiv 2007.01162). Its gradient is
−Σ w_i ∇r_i + Σ v_j ∇r'_j with w ∝ e^{(α−1) r} and v ∝ e^{α r'}. This is a reconstruction: of the paper
(arXiv 2604.20933) only the abstract was at hand.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

NormalizerKind = Literal["unit", "anchored", "running", "batch"]
MOMENTUM = 0.1
SERIES_BELOW = 1e-4


def tilted_risk(reward: Tensor, tilt: float) -> Tensor:
    """T_s[r] = (1/s)·log mean e^{s r}, with its limit, the mean, at s = 0.

    Near 0 the series mean + s/2·var + s²/6·(third central moment) is used, so that value and gradient are continuous.

    Args:
        reward: shape [pairs].
        tilt: s.
    """
    spread = reward.detach().abs().max().clamp(min=1.0).item() if reward.numel() else 1.0
    if abs(tilt) * spread < SERIES_BELOW:
        centred = reward - reward.mean()
        return (
            reward.mean() + tilt / 2 * centred.square().mean() + tilt**2 / 6 * centred.pow(3).mean()
        )
    return log_mean_exp(tilt * reward) / tilt


def log_mean_exp(values: Tensor) -> Tensor:
    """log mean e^x, without overflow."""
    return torch.logsumexp(values, dim=0) - math.log(values.numel())


def variational_bound(annotated: Tensor, synthetic: Tensor, order: float) -> Tensor:
    """J = T_{α−1}[r] − T_α[r'], a lower bound on D_α(p_data‖p_t)/α (Birrell et al., theorem 3). L_α is −J.

    Args:
        annotated: rewards of annotated responses, shape [pairs].
        synthetic: rewards of synthetic responses, shape [pairs].
        order: α.
    """
    return tilted_risk(annotated, order - 1) - tilted_risk(synthetic, order)


def tilted_weights(reward: Tensor, tilt: float, log_normalizer: float, clip: float) -> Tensor:
    """Importance weights e^{s r} / Z, clipped at `clip`, as constants. With Z = mean e^{s r} their mean is 1."""
    return (tilt * reward.detach() - log_normalizer).clamp(max=math.log(clip)).exp()


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σw)² / Σw²: the number of equally weighted samples worth as much; between 1 and the number of weights."""
    scaled = weights / weights.max()
    return scaled.sum().square() / scaled.square().sum()


class Normalizer:
    """log Z of both sides' weights, over whole optimiser batches.

    - `unit`: Z ≡ 1, the α-divergence form, whose push on synthetic responses vanishes as they become improbable.
    - `batch`: Z = mean e^{s r} over the optimiser batch, the literal formula.
    - `running`: exponential moving average of the batches before this one, in log space (TERM's stochastic solver).
      It begins at Z = 1, which is exact: at the first step r ≡ 0.
    - `anchored`: max(running, 1).

    Args:
        kind: which of them.
        order: α.
    """

    def __init__(self, kind: NormalizerKind, order: float):
        self.kind, self.order = kind, order
        self.log_annotated = self.log_synthetic = 0.0

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the rewards of the whole optimiser batch must be known before the first backward."""
        return self.kind == "batch"

    def log_values(self) -> tuple[float, float]:
        """(log Z annotated, log Z synthetic) for the batch at hand."""
        if self.kind == "unit":
            return 0.0, 0.0
        if self.kind == "anchored":
            return max(self.log_annotated, 0.0), max(self.log_synthetic, 0.0)
        return self.log_annotated, self.log_synthetic

    def see(self, annotated: Tensor, synthetic: Tensor) -> None:
        """Takes in the rewards of a whole optimiser batch (before the step for `batch`, else after it)."""
        new = (
            log_mean_exp((self.order - 1) * annotated.double()).item(),
            log_mean_exp(self.order * synthetic.double()).item(),
        )
        if self.kind == "batch":
            self.log_annotated, self.log_synthetic = new
        else:
            self.log_annotated = _average(self.log_annotated, new[0])
            self.log_synthetic = _average(self.log_synthetic, new[1])

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must keep."""
        return {"log_annotated": self.log_annotated, "log_synthetic": self.log_synthetic}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes back what `state_dict` gave."""
        self.log_annotated, self.log_synthetic = state["log_annotated"], state["log_synthetic"]


def iris_loss(
    annotated: Tensor,
    synthetic: Tensor,
    order: float,
    log_normalizers: tuple[float, float] = (0.0, 0.0),
    clip: float = 5.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-pair losses −w·r + v·r' whose mean has the gradient of L_α, and the weights w and v.

    Args:
        annotated: rewards of annotated responses, shape [pairs].
        synthetic: rewards of synthetic responses, shape [pairs].
        order: α.
        log_normalizers: log Z of both sides; (0, 0) is the unit normaliser.
        clip: largest weight.

    Returns:
        Losses, w and v, each of shape [pairs].
    """
    w = tilted_weights(annotated, order - 1, log_normalizers[0], clip)
    v = tilted_weights(synthetic, order, log_normalizers[1], clip)
    return v * synthetic - w * annotated, w, v


def _average(old: float, new: float) -> float:
    """log((1−λ)·e^old + λ·e^new), λ = `MOMENTUM`."""
    high = max(old, new)
    return high + math.log((1 - MOMENTUM) * math.exp(old - high) + MOMENTUM * math.exp(new - high))
