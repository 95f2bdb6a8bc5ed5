"""The gap between data and opponent, estimated on held-out pairs.

It is an estimate without an interval. Log-mean-exp of n rewards depends on the few largest of them, and no lower bound
from n samples can be much above ln n nats (McAllester and Stratos, arXiv 1811.04251).
"""

from __future__ import annotations

import math

import numpy as np

from iris_core.common.intervals import Floats, Interval
from iris_core.common.strict import Number, Strict


class Gap(Strict):
    """The gap D̂ between data and opponent: an estimate in nats, without an interval.

    Attributes:
        ess: effective sample size of the weights e^{r'} that it depends on.
        pairs: number of held-out pairs that it was measured on.
        confirmed: whether it is positive and the interval of the mean held-out margin is above 0.
    """

    value: Number
    ess: Number
    pairs: int
    confirmed: bool


def variational_gap(annotated: Floats, synthetic: Floats) -> Floats:
    """J(θ; α = 1) = mean r − log mean e^{r'} along the last axis: the Donsker–Varadhan bound on KL(p_data‖p_t).

    Args:
        annotated: rewards of annotated responses, in nats, shape [..., pairs].
        synthetic: rewards of synthetic responses, in nats, shape [..., pairs].
    """
    high = synthetic.max(axis=-1, keepdims=True)
    log_mean = np.log(np.exp(synthetic - high).mean(axis=-1)) + high.squeeze(-1)
    result: Floats = annotated.mean(axis=-1) - log_mean
    return result


def measure_gap(annotated: Floats, synthetic: Floats, margin: Interval) -> Gap:
    """Estimates D̂, with its effective sample size.

    Args:
        annotated: rewards of annotated responses, in nats, shape [pairs].
        synthetic: rewards of synthetic responses, in nats, shape [pairs].
        margin: the mean reward margin of the same pairs, with its interval.
    """
    weights = np.exp(synthetic - synthetic.max())
    value = float(variational_gap(annotated, synthetic))
    return Gap(
        value=value,
        ess=float(weights.sum() ** 2 / np.square(weights).sum()),
        pairs=len(synthetic),
        confirmed=value > 0 and margin.low > 0,
    )


def gap_warnings(gap: Gap) -> list[str]:
    """A warning if D̂ is larger than this number of pairs can show; otherwise empty."""
    most = math.log(gap.pairs)
    if gap.value <= most:
        return []
    return [
        f"the gap, {gap.value:.3g} nats, is above ln({gap.pairs}) = {most:.3g}, the most that {gap.pairs} held-out "
        'pairs can show: read it as "large"; raise data.heldout for a finer estimate'
    ]
