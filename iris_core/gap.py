"""The gap between data and opponent, measured on held-out pairs, and bootstrap intervals for it and for means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from iris_core.specs import Gap

RESAMPLES = 2000
Floats = NDArray[np.float64]


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


def measure_gap(annotated: Floats, synthetic: Floats, seed: int) -> Gap:
    """D̂ with its 95 % interval, resampling pairs."""
    return interval(
        lambda rows: variational_gap(annotated[rows], synthetic[rows]), len(annotated), seed
    )


def ratio_of_sums(values: Floats, counts: Floats, seed: int) -> Gap:
    """Σ values / Σ counts (a log-probability per token) with its 95 % interval, resampling pairs."""
    return interval(
        lambda rows: values[rows].sum(axis=-1) / counts[rows].sum(axis=-1), len(values), seed
    )


def interval(statistic: Callable[[NDArray[np.int64]], Floats], size: int, seed: int) -> Gap:
    """A statistic of all rows and its percentile bootstrap 95 % interval.

    Args:
        statistic: takes row numbers of shape [..., size] and reduces the last axis.
        size: how many rows there are.
        seed: of the resampling.
    """
    rows = np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))
    low, high = np.quantile(statistic(rows), [0.025, 0.975])
    return Gap(value=float(statistic(np.arange(size))), low=float(low), high=float(high))
