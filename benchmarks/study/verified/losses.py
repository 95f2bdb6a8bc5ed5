"""Forms of verified self-play that the study tries beside the product's, with the product's types.

Responses have the shape [runs, rows, n]: n samples of each row's prompt.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from iris_core.objectives.losses import OBJECTIVES, Objective, Parameters, Rewards, SampleWeights, tilted_weights
from iris_core.objectives.verified import VERIFIED

Baseline = Literal["prompt", "smoothed", "common"]
Negatives = Literal["first-token", "suffix", "whole", "nearest"]


def share_right(right: Tensor, baseline: Baseline) -> Tensor:
    """p̂ of each prompt [runs, rows]: of its samples, smoothed by one half, or of all rows."""
    if baseline == "common":
        return right.mean((1, 2))[:, None].expand(right.shape[:2])
    if baseline == "prompt":
        return right.mean(-1)
    return (right.sum(-1) + 0.5) / (right.shape[-1] + 1)


def balanced_weights(
    right: Tensor, annotated: Tensor, weight: Tensor, baseline: Baseline, strength: float
) -> SampleWeights:
    """U = ρ(1 − κ·p̂)/n of right samples and D = ρ·κ·p̂/n of wrong ones.

    If p̂ does not depend on the sample, the expected gradient at r = 0 is the same for every κ. κ = 0 is RFT.

    Args:
        right: verdicts, 0 or 1, shape [runs, rows, n].
        annotated: 1, or 0 where the row has no annotated response, shape [runs, rows].
        weight: ρ, shape [runs, 1, 1].
        baseline: whose share p̂ is.
        strength: κ.
    """
    share = share_right(right, baseline)
    subtracted, scale = strength * share.unsqueeze(-1), weight / right.shape[-1]
    return SampleWeights(annotated, scale * (1 - subtracted) * right, scale * subtracted * (1 - right), share)


def normalized(weights: SampleWeights, weight: Tensor) -> SampleWeights:
    """The weights with a mean sum of ρ per row, however many samples are right."""
    total = (weights.up + weights.down).sum(-1).mean(1)[:, None, None]
    factor = weight / total.clamp(min=1e-6)
    return weights._replace(up=weights.up * factor, down=weights.down * factor)


def nearest_wrong(weights: SampleWeights, tokens: Tensor) -> SampleWeights:
    """All negative weight of a row on its wrong sample with the fewest tokens that differ from a right one's.

    Args:
        weights: of the samples.
        tokens: shape [runs, rows, n, length].
    """
    most = tokens.shape[-1] + 1
    differing = (tokens.unsqueeze(3) != tokens.unsqueeze(2)).sum(-1)
    to_right = differing.masked_fill((weights.up == 0).unsqueeze(2), most).amin(-1)
    nearest = to_right.masked_fill(weights.down == 0, most).argmin(-1)
    chosen = torch.nn.functional.one_hot(nearest, tokens.shape[2])
    return weights._replace(down=chosen * weights.down.sum(-1, keepdim=True))


def from_first_difference(weights: SampleWeights, tokens: Tensor, annotated: Tensor, first_alone: bool) -> Tensor:
    """Which tokens count: of a wrong sample those from the first that no right response of its row shares, else all.

    Args:
        weights: of the samples.
        tokens: shape [runs, rows, n, length].
        annotated: tokens of the annotated responses, shape [runs, rows, length]; of a row without one, any.
        first_alone: whether that first one is the only one that counts.

    Returns:
        0 or 1, in the shape of the tokens.
    """
    right = torch.cat([weights.up, weights.annotated.unsqueeze(-1)], dim=-1) > 0
    others = torch.cat([tokens, annotated.unsqueeze(2)], dim=2)
    common = (tokens.unsqueeze(3) == others.unsqueeze(2)).int().cumprod(-1).sum(-1)
    shared = common.masked_fill(~right.unsqueeze(2), 0).amax(-1, keepdim=True)
    places = torch.arange(tokens.shape[-1])
    counts = places == shared if first_alone else places >= shared
    return (counts | (weights.down == 0).unsqueeze(-1)).float()


def balanced(faded: bool) -> Objective:
    """The likelihood of RFT, and −Σ D·v·log p(y') with v = min(1, e^{r'}) where pushes fade, else v = 1.

    Args:
        faded: whether the push on a wrong sample fades as it becomes improbable.
    """

    def loss(rewards: Rewards, parameters: Parameters) -> Tensor:
        weights = rewards.weights
        assert weights is not None
        v = tilted_weights(rewards.synthetic, 1.0, 0.0, 1.0) if faded else torch.ones_like(rewards.synthetic)
        samples = (v * weights.down - weights.up) * rewards.synthetic
        return (samples.sum(-1) - weights.annotated * rewards.annotated) / parameters.mean_tokens

    return Objective(loss)


_OWN = {"balanced": balanced(faded=True), "reinforce": balanced(faded=False)}
OBJECTIVES_OF_STUDY = {False: OBJECTIVES, True: {**VERIFIED, **_OWN}}  # without a verifier, and with one
