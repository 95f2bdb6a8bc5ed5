"""Objectives of the study alone, with the signature of those in `iris_core.objectives.losses`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from iris_core.objectives.losses import (
    OBJECTIVES,
    Objective,
    Parameters,
    Rewards,
    effective_sample_size,
    iris,
    iris_weights,
    tilted_weights,
)

Loss = Callable[[Rewards, Parameters], Tensor]
BOUND = 2.0  # nats; largest reward of `iris-bounded`
LEAST_SHARE = 0.5  # effective share of the batch that the tempered variants keep
HALVINGS = 10  # of the interval in which they search for the tilt


def with_likelihood(loss: Loss) -> Loss:
    """The loss plus −λ·r on annotated responses, for objectives other than IRIS, which has that term."""

    def combined(rewards: Rewards, parameters: Parameters) -> Tensor:
        return loss(rewards, parameters) - parameters.likelihood_weight * rewards.annotated

    return combined


def bounded(rewards: Rewards, parameters: Parameters) -> Tensor:
    """IRIS on rewards c·tanh(r/c): its weights are bounded."""
    squashed = (BOUND * (reward / BOUND).tanh() for reward in rewards[:2])
    return iris(Rewards(*squashed), parameters)


def centred(rewards: Rewards, parameters: Parameters) -> Tensor:
    """IRIS with v − 1 in place of v.

    Where policy and opponent agree, E_t ∇log p_θ = 0: the coefficient v = 1 of synthetic responses is noise, and is
    removed here. This adds KL(p_t‖p_θ), which keeps the policy near the opponent.
    """
    return iris(rewards, parameters) - rewards.synthetic


def skewed(rewards: Rewards, parameters: Parameters) -> Tensor:
    """IRIS between p_data and the mixture (p_data + p_t)/2, as a skewed Jensen–Shannon divergence, and its −λ·r.

    The reward is log p_θ / ((p_θ + p_t)/2) = log 2σ(r) ≤ log 2; half of the mixture's samples are the annotated ones.
    """
    annotated, synthetic = (math.log(2) + logsigmoid(reward) for reward in rewards[:2])
    w, v = iris_weights(Rewards(annotated, synthetic), parameters)
    of_mixture = tilted_weights(annotated, parameters.order, parameters.log_normalizers[1], parameters.clip)
    loss = (of_mixture * annotated + v * synthetic) / 2 - w * annotated
    return loss - parameters.likelihood_weight * rewards.annotated


def tempered(rewards: Rewards, parameters: Parameters) -> Tensor:
    """IRIS with both tilts reduced until the effective sample size is half of the batch."""
    w = _tempered_weights(rewards.annotated, parameters.order - 1, parameters.clip)
    v = _tempered_weights(rewards.synthetic, parameters.order, parameters.clip)
    return v * rewards.synthetic - w * rewards.annotated


def _tempered_weights(reward: Tensor, tilt: float | Tensor, clip: float) -> Tensor:
    share = largest(lambda s: _effective_share(reward, s * tilt), reward)
    return tilted_weights(reward, share * tilt, 0.0, clip)


def stepwise(rewards: Rewards, parameters: Parameters) -> Tensor:
    """IRIS with an order per step between 1 and α: the largest with an effective sample size of half the batch."""

    def effective(share: Tensor) -> Tensor:
        order = 1 + share * (parameters.order - 1)
        return torch.minimum(
            _effective_share(rewards.annotated, order - 1),
            _effective_share(rewards.synthetic, order),
        )

    order = 1 + largest(effective, rewards.annotated) * (parameters.order - 1)
    return iris(rewards, replace(parameters, order=order))


def _effective_share(reward: Tensor, tilt: Tensor) -> Tensor:
    scaled = tilt * reward.detach()
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp()
    return effective_sample_size(weights).unsqueeze(-1) / reward.shape[-1]


def largest(effective: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The largest share in [0, 1], shape [..., 1], at which `effective` keeps `LEAST_SHARE`, by halving."""
    low, high = torch.zeros_like(like[..., :1]), torch.ones_like(like[..., :1])
    low = torch.where(effective(high) >= LEAST_SHARE, high, low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = effective(middle) >= LEAST_SHARE
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low


STUDY_OBJECTIVES = {
    **OBJECTIVES,
    "iris-bounded": Objective(bounded),
    "iris-centred": Objective(centred),
    "iris-skewed": Objective(skewed),
    "iris-tempered": Objective(tempered),
    "iris-stepwise": Objective(stepwise),
    **{
        f"{name}+likelihood": replace(objective, loss=with_likelihood(objective.loss))
        for name, objective in OBJECTIVES.items()
        if name not in ("iris", "sft")
    },
}
