"""What is measured and checked at each optimiser step, from the log-probs of its batch."""

from __future__ import annotations

import resource

import torch
from torch import Tensor

from iris_core.common.errors import TrainingError
from iris_core.objectives.losses import SampleWeights, effective_sample_size


def weight_metrics(side: str, weights: Tensor) -> dict[str, float]:
    """Effective share and largest of the per-pair gradient coefficients of one kind of responses; none without pairs.

    Args:
        side: "annotated" or "synthetic".
        weights: the coefficients, shape [pairs].
    """
    if not len(weights):
        return {}
    share = effective_sample_size(weights).item() / len(weights)
    return {f"ess/{side}": share, f"weight_max/{side}": weights.max().item()}


def response_metrics(rewards: Tensor, logprobs: Tensor, lengths: Tensor) -> dict[str, float]:
    """Mean reward and log-prob per token of annotated and synthetic responses, and the margin where there are both.

    Rewards are those of the comparison; log-probs are those of whole responses.

    Args:
        rewards: shape [pairs, sums].
        logprobs: shape [pairs, sums].
        lengths: tokens of each sum, shape [pairs, sums].
    """
    annotated = logprobs[:, :2].sum() / lengths[:, :2].sum()
    metrics = {
        "reward/annotated": rewards[:, 0].mean().item(),
        "logprob/annotated": annotated.item(),
    }
    both = has_synthetic(lengths)
    if both.any():
        synthetic, margin = rewards[both, 2], rewards[both, 0] - rewards[both, 2]
        metrics |= {
            "reward/synthetic": synthetic.mean().item(),
            "logprob/synthetic": (logprobs[:, 2].sum() / lengths[:, 2].sum()).item(),
            "reward/margin": margin.mean().item(),
            "reward/accuracy": (margin > 0).float().mean().item(),
        }
    return metrics


def verified_metrics(
    up: Tensor, down: Tensor, rewards: Tensor, logprobs: Tensor, lengths: Tensor, weights: SampleWeights
) -> dict[str, float]:
    """The same of verified self-play; rewards of right and wrong samples are means weighted by U and D.

    The weights of wrong samples are those of the objective, v/T for IRIS, without D.

    Args:
        up: gradient coefficients of annotated responses, shape [pairs].
        down: those of samples, (D·v − U)/T for IRIS, shape [pairs, n].
        rewards: shape [pairs, 2 + n].
        logprobs: the same shape.
        lengths: tokens of each sum, the same shape.
        weights: of the responses.
    """
    annotated, wrong = weights.annotated > 0, weights.down > 0
    metrics = {
        **weight_metrics("annotated", up[annotated]),
        **weight_metrics("synthetic", down[wrong] / weights.down[wrong]),
        "verified/up": weights.up.sum(dim=1).mean().item(),
        "verified/down": weights.down.sum(dim=1).mean().item(),
    }
    if annotated.any():
        metrics["reward/annotated"] = rewards[annotated, 0].mean().item()
        metrics["logprob/annotated"] = (logprobs[:, :2].sum() / lengths[:, :2].sum()).item()
    if not weights.share.isnan().all():
        metrics["verified/share_right"] = weights.share.nanmean().item()
    for name, weight in (("right", weights.up), ("wrong", weights.down)):
        if weight.any():
            metrics[f"reward/{name}"] = ((weight * rewards[:, 2:]).sum() / weight.sum()).item()
    return metrics


def has_synthetic(lengths: Tensor) -> Tensor:
    """Whether each pair has a synthetic response, shape [pairs]; `lengths` has the shape [pairs, sums]."""
    return (lengths[:, 2:3] > 0).any(dim=1)


def check_step0(log_ratio: Tensor, tokens: Tensor, tolerance: float | None) -> None:
    """Before the first update the policy must be the opponent: |log-ratio| per token within `tolerance` nats.

    Args:
        log_ratio: log p_θ − log p_t of each sum, shape [pairs, sums].
        tokens: of each sum, the same shape.
        tolerance: None: the policy is not the opponent, and nothing is checked.

    Raises:
        TrainingError: it is not.
    """
    if tolerance is None:
        return
    drift = (log_ratio.abs().sum() / tokens.sum()).item()
    if not drift <= tolerance:
        raise TrainingError(
            f"training: at step 0 the policy differs from its opponent by {drift:.2g} nats per token (at most "
            f"{tolerance:.2g} is rounding): the opponent's log-probabilities come from another model, adapter, chat "
            "template or dtype; remove the folder of this stage and run again"
        )


def peak_memory_gb() -> float:
    """The most memory that this process has had: of its GPU where it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
