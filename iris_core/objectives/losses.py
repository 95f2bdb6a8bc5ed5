"""The objectives of self-play: pure functions with one signature, from rewards to a loss for every pair.

With rewards r = β·[log p_θ(y|x) − log p_t(y|x)] of annotated responses y and r' of synthetic responses y', IRIS of
order α is

    L_α = −T_{α−1}[r] + T_α[r'],        T_s[r] = (1/s)·log E e^{s r}

(the variational formula for Rényi divergences, arXiv 2007.03814; tilted risks, arXiv 2007.01162). Its gradient is
−Σ w_i ∇r_i + Σ v_j ∇r'_j with w ∝ e^{(α−1) r} and v ∝ e^{α r'}. This is a reconstruction: of the paper
(arXiv 2604.20933) only the abstract was available. `OBJECTIVES` lists IRIS and the other objectives; docs/objective.md
derives them.

Rewards have the shape [..., pairs]; leading axes are independent runs. The comparison of r with r' uses at most the
same number of tokens of every response, but for verified self-play. The likelihood (λ, SFT) uses the whole annotated
response (`Rewards.rest`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from iris_core.config.objective import (
    RESPONSES,
    SPACE_RATIO,
    SPIF_CURVATURE,
    TSPIN_INITIAL_WEIGHT,
    ObjectivePart,
)

SERIES_BELOW = 1e-4


class SampleWeights(NamedTuple):
    """What each response weighs by a verifier's verdicts (`iris_core.objectives.verified`).

    Attributes:
        annotated: 1, or 0 where the prompt has no annotated response, shape [..., pairs].
        up: U, weight of each sample's likelihood, shape [..., pairs, n].
        down: D, weight of the push on each sample, the same shape.
        share: p̂, share of right samples among the decided ones, shape [..., pairs]; NaN where none is decided.
    """

    annotated: Tensor
    up: Tensor
    down: Tensor
    share: Tensor

    def of(self, pairs: Tensor) -> SampleWeights:
        """Those of some pairs, by index, on the device of the indices."""
        return SampleWeights(*(each.to(pairs.device)[pairs] for each in self))


class Rewards(NamedTuple):
    """β times the log-ratio (or, for an objective that is not `relative`, the log-probability) of each response.

    Attributes:
        annotated: of the annotated responses, shape [..., pairs].
        synthetic: of the opponent's responses, the same shape; with `weights`, of n samples, shape [..., pairs, n], a
            wrong one by its first token that no right one has.
        initial: of the initial model's responses, the same shape; only T-SPIN uses them.
        rest: of the tokens of annotated responses beyond the longest synthetic one, the same shape; None if there are
            none. The annotated likelihood uses them, the comparison does not.
        weights: of all responses in verified self-play, else None.
    """

    annotated: Tensor
    synthetic: Tensor
    initial: Tensor | None = None
    rest: Tensor | None = None
    weights: SampleWeights | None = None

    @property
    def whole(self) -> Tensor:
        """Rewards of the annotated responses to their end."""
        return self.annotated if self.rest is None else self.annotated + self.rest


@dataclass(frozen=True)
class Parameters:
    """What the losses need besides the rewards; each uses its own part.

    Attributes:
        order: α of IRIS.
        log_normalizers: log Z of both sides' weights in IRIS; (0, 0) is the unit normaliser.
        clip: largest weight in IRIS.
        likelihood_weight: λ, weight of an annotated log-likelihood term −λ·r in IRIS, r of the whole response.
        ratio: μ of SPACE, synthetic responses per annotated one.
        curvature: c of SPIF; its optimal rewards are in [−1/c, 1/c].
        initial_weight: b of T-SPIN.
        mean_tokens: annotated tokens per pair in the optimiser batch, for SFT's loss per token; for RFT's and that of
            verified self-play, right samples count by their weight, too.
    """

    order: float | Tensor
    log_normalizers: tuple[float | Tensor, float | Tensor]
    clip: float
    likelihood_weight: float
    ratio: float
    curvature: float
    initial_weight: float
    mean_tokens: float | Tensor

    @classmethod
    def of(cls, settings: ObjectivePart, order: float | Tensor) -> Self:
        """The parameters from the settings. The trainer sets `log_normalizers` and `mean_tokens` for every batch."""
        return cls(
            order=order,
            log_normalizers=(0.0, 0.0),
            clip=settings.weight_clip,
            likelihood_weight=settings.likelihood_weight,
            ratio=SPACE_RATIO,
            curvature=SPIF_CURVATURE,
            initial_weight=TSPIN_INITIAL_WEIGHT,
            mean_tokens=1.0,
        )


def iris(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−w·r + v·r' − λ·r with constant weights: its mean has the gradient of L_α (arXiv 2604.20933, reconstructed)."""
    w, v = iris_weights(rewards, parameters)
    tilted = v * rewards.synthetic - w * rewards.annotated
    return tilted - parameters.likelihood_weight * rewards.whole


def iris_value(rewards: Rewards, parameters: Parameters) -> Tensor:
    """L_α − λ·mean r of one batch."""
    bound = variational_bound(rewards.annotated, rewards.synthetic, parameters.order)
    return -bound - parameters.likelihood_weight * rewards.whole.mean()


def spin(rewards: Rewards, parameters: Parameters) -> Tensor:
    """softplus(−m), m = r − r': the logistic loss of SPIN (arXiv 2401.01335, equation 4.7)."""
    return softplus(rewards.synthetic - rewards.annotated)


def hinge(rewards: Rewards, parameters: Parameters) -> Tensor:
    """max(0, 1 − m), m = r − r': SPIN with its other loss function."""
    return (1 - rewards.annotated + rewards.synthetic).relu()


def space(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−log σ(r − log μ) − μ·log σ(log μ − r'): noise-contrastive, optimal at r = log p_data/p_t (arXiv 2512.07175)."""
    shift = math.log(parameters.ratio)
    return softplus(shift - rewards.annotated) + parameters.ratio * softplus(rewards.synthetic - shift)


def spif(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−(r − r') + (c/2)·(r² + r'²): χ² to the mixture, optimal at r = (p_data − p_t) / (c·(p_data + p_t)).

    A reconstruction: the loss of arXiv 2602.01357 is not public.
    """
    penalty = rewards.annotated.square() + rewards.synthetic.square()
    return rewards.synthetic - rewards.annotated + parameters.curvature / 2 * penalty


def tspin(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−log σ(r − r') − b·log σ(r' − r°), r° of the initial model's responses, without opponent (arXiv 2601.08198).

    In iteration 0 the opponent is the initial model, so there is no r° and the second term is left out (b = 0).
    """
    loss = softplus(rewards.synthetic - rewards.annotated)
    if rewards.initial is None:
        return loss
    return loss + parameters.initial_weight * softplus(rewards.initial - rewards.synthetic)


def sft(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−log p_θ(y|x) per token: supervised fine-tuning on the annotated responses, the baseline."""
    return -rewards.whole / parameters.mean_tokens


def rft(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−(log p_θ(y|x) + Σ_k U_k·log p_θ(y'_k|x)) per token: SFT with the right samples (rejection sampling, 2308.01825).

    Without verdicts, or right samples, it is SFT.
    """
    likelihood = rewards.whole
    if rewards.weights is not None:
        likelihood = likelihood + (rewards.weights.up * rewards.synthetic).sum(dim=-1)
    return -likelihood / parameters.mean_tokens


@dataclass(frozen=True)
class Objective:
    """An objective and what it needs from the trainer.

    Attributes:
        loss: the loss of every pair, [..., pairs]; its mean over the optimiser batch is minimised.
        relative: whether rewards are relative to the opponent; otherwise they are β·log p_θ alone.
        scaled: whether rewards are multiplied by β; otherwise β is 1.
        responses: how many responses to a prompt it uses, in the order annotated, synthetic, the initial model's.
        value: the reported loss of a whole batch, if that is not the mean over its pairs.
    """

    loss: Callable[[Rewards, Parameters], Tensor]
    relative: bool = True
    scaled: bool = True
    responses: int = 2
    value: Callable[[Rewards, Parameters], Tensor] | None = None

    def batch_loss(self, rewards: Rewards, parameters: Parameters) -> Tensor:
        """The reported loss of a whole batch, a scalar."""
        return self.value(rewards, parameters) if self.value else self.loss(rewards, parameters).mean()


OBJECTIVES = {
    "iris": Objective(iris, value=iris_value),
    "spin": Objective(spin),
    "hinge": Objective(hinge),
    "space": Objective(space),
    "spif": Objective(spif),
    "tspin": Objective(tspin, relative=False, responses=RESPONSES["tspin"]),
    "sft": Objective(sft, relative=False, scaled=False, responses=RESPONSES["sft"]),
    "rft": Objective(rft, relative=False, scaled=False),
}


def gradient_coefficients(objective: Objective, rewards: Rewards, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Per-pair gradient coefficients: −∂loss/∂r of the annotated response and ∂loss/∂r' of the synthetic one.

    For IRIS these are its importance weights (w + λ and v), for verified self-play with U and D ((D·v − U)/T).

    Returns:
        Two tensors of the shape of the rewards.
    """
    with torch.enable_grad():
        annotated = rewards.annotated.detach().requires_grad_()
        synthetic = rewards.synthetic.detach().requires_grad_()
        moved = rewards._replace(annotated=annotated, synthetic=synthetic)
        loss = objective.loss(moved, parameters).sum()
        up, down = torch.autograd.grad(loss, (annotated, synthetic), materialize_grads=True)
    return -up, down


def tilted_risk(reward: Tensor, tilt: float) -> Tensor:
    """T_s[r] = (1/s)·log mean e^{s r}, with its limit, the mean, at s = 0.

    Near 0 it uses the series mean + s/2·var + s²/6·(third central moment), so value and gradient are continuous.

    Args:
        reward: shape [pairs].
        tilt: s.
    """
    spread = reward.detach().abs().max().clamp(min=1.0).item() if reward.numel() else 1.0
    if abs(tilt) * spread < SERIES_BELOW:
        centred = reward - reward.mean()
        return reward.mean() + tilt / 2 * centred.square().mean() + tilt**2 / 6 * centred.pow(3).mean()
    return log_mean_exp(tilt * reward).squeeze(-1) / tilt


def log_mean_exp(values: Tensor) -> Tensor:
    """log mean e^x over the last axis, which is kept; it does not overflow."""
    return torch.logsumexp(values, dim=-1, keepdim=True) - math.log(values.shape[-1])


def variational_bound(annotated: Tensor, synthetic: Tensor, order: float) -> Tensor:
    """J = T_{α−1}[r] − T_α[r'], a lower bound on D_α(p_data‖p_t)/α (Birrell et al., theorem 3). L_α is −J.

    Args:
        annotated: rewards of annotated responses, shape [pairs].
        synthetic: rewards of synthetic responses, shape [pairs].
        order: α.
    """
    return tilted_risk(annotated, order - 1) - tilted_risk(synthetic, order)


def iris_weights(rewards: Rewards, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """The weights w and v of IRIS, each of the shape of the rewards, detached."""
    order, (log_annotated, log_synthetic) = parameters.order, parameters.log_normalizers
    return (
        tilted_weights(rewards.annotated, order - 1, log_annotated, parameters.clip),
        tilted_weights(rewards.synthetic, order, log_synthetic, parameters.clip),
    )


def tilted_weights(reward: Tensor, tilt: float | Tensor, log_normalizer: float | Tensor, clip: float) -> Tensor:
    """Importance weights e^{s r} / Z, clipped at `clip`, detached. Their mean is 1 if Z = mean e^{s r}."""
    return (tilt * reward.detach() - log_normalizer).clamp(max=math.log(clip)).exp()


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σ|w|)² / Σw² over the last axis: the number of equal weights that are worth as much; 0 if all weights are 0.

    The weights of IRIS are positive; the `gradient_coefficients` of T-SPIN may have either sign.
    """
    sizes = weights.abs()
    scaled = sizes / sizes.amax(dim=-1, keepdim=True).clamp(min=1e-30)
    return scaled.sum(dim=-1).square() / scaled.square().sum(dim=-1).clamp(min=1e-30)
