"""Verified self-play: the objectives on n samples of each prompt that a verifier judged right or wrong.

With p̂ the share of right samples among the decided ones of a prompt, a right sample weighs U = ρ(1 − κp̂)/n and a wrong
one D = ρκp̂/n. The loss of a pair is, per token whose likelihood is raised,

    the objective's annotated part − Σ_k U_k·r'_k + Σ_k D_k·(the objective's push on r'_k)

The reward r' of a right sample is that of the whole response, the reward of a wrong one that of a single token: the
first at which it leaves every right response to its prompt (`iris_core.training.samples`). Prompts without a right
sample have no weight. docs/objective.md derives it.

Leading axes are independent runs, as in `iris_core.objectives.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from iris_core.objectives.losses import OBJECTIVES, Objective, Parameters, Rewards, SampleWeights, tilted_weights

Loss = Callable[[Rewards, Parameters], Tensor]


def sample_weights(
    right: Tensor, wrong: Tensor, annotated: Tensor, weight: float | Tensor, baseline: float
) -> SampleWeights:
    """U = ρ(1 − κp̂)·right/n and D = ρκp̂·wrong/n.

    Args:
        right: 1 for each right sample, else 0, shape [..., pairs, n].
        wrong: the same of wrong samples; an undecided one is neither.
        annotated: 1, or 0 where the prompt has no annotated response, shape [..., pairs].
        weight: ρ.
        baseline: κ; 0 for `rft`.
    """
    share = right.sum(dim=-1) / (right + wrong).sum(dim=-1)  # NaN where no sample is decided
    subtracted, scale = baseline * share.nan_to_num().unsqueeze(-1), weight / right.shape[-1]
    return SampleWeights(annotated, scale * (1 - subtracted) * right, scale * subtracted * wrong, share)


def verified(annotated: Loss, push: Loss) -> Loss:
    """The loss of every pair per token, shape [..., pairs], from an objective's annotated part and its push on samples.

    Args:
        annotated: shape [..., pairs].
        push: shape [..., pairs, n].
    """

    def loss(rewards: Rewards, parameters: Parameters) -> Tensor:
        weights = rewards.weights
        assert weights is not None
        samples = weights.down * push(rewards, parameters) - weights.up * rewards.synthetic
        return (weights.annotated * annotated(rewards, parameters) + samples.sum(dim=-1)) / parameters.mean_tokens

    return loss


def iris_annotated(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−(w + λ)·r of the whole response, w by the reward of its first L tokens."""
    w = tilted_weights(rewards.annotated, parameters.order - 1, parameters.log_normalizers[0], parameters.clip)
    return -(w + parameters.likelihood_weight) * rewards.whole


def iris_push(rewards: Rewards, parameters: Parameters) -> Tensor:
    """v·r', v constant: it fades as a wrong sample becomes improbable."""
    flat = rewards.synthetic.flatten(-2)
    v = tilted_weights(flat, parameters.order, parameters.log_normalizers[1], parameters.clip)
    return v.view_as(rewards.synthetic) * rewards.synthetic


def spin_annotated(rewards: Rewards, parameters: Parameters) -> Tensor:
    """0: SPIN has the annotated reward in its push alone."""
    return torch.zeros_like(rewards.annotated)


def spin_push(rewards: Rewards, parameters: Parameters) -> Tensor:
    """softplus(r'_k − r); r is 0 where the prompt has no annotated response."""
    return softplus(rewards.synthetic - rewards.annotated.unsqueeze(-1))


def space_annotated(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−log σ(r − log μ)."""
    return softplus(math.log(parameters.ratio) - rewards.annotated)


def space_push(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−μ·log σ(log μ − r'_k)."""
    return parameters.ratio * softplus(rewards.synthetic - math.log(parameters.ratio))


def spif_annotated(rewards: Rewards, parameters: Parameters) -> Tensor:
    """−r + (c/2)·r²."""
    return parameters.curvature / 2 * rewards.annotated.square() - rewards.annotated


def spif_push(rewards: Rewards, parameters: Parameters) -> Tensor:
    """r'_k + (c/2)·r'_k²."""
    return parameters.curvature / 2 * rewards.synthetic.square() + rewards.synthetic


VERIFIED = {
    "iris": Objective(verified(iris_annotated, iris_push)),
    "spin": Objective(verified(spin_annotated, spin_push)),
    "space": Objective(verified(space_annotated, space_push)),
    "spif": Objective(verified(spif_annotated, spif_push)),
    "rft": OBJECTIVES["rft"],
}
