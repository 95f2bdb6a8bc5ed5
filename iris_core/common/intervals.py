"""95 % confidence intervals. Their coverage is tested by simulation (`tests/iris_core/common/test_intervals.py`).

    mean(margins, seed=0)                     # of independent values
    ratio(logprobs, tokens, seed=0)           # of Σ values / Σ counts, e.g. a log-probability per token
    proportion(successes=3, trials=48)        # exact, also at 0 of 48
    crossed(logprobs, tokens)                 # over seeds that all saw the same prompts

The percentile bootstrap is not used: with 16 to 64 values its intervals are too short, and for a proportion of 0 its
interval is [0, 0].
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from iris_core.common.strict import Number, Strict

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
RESAMPLES = 2000
FEWEST = 16  # values; with fewer, the coverage is tested for normal values only
Floats = NDArray[np.float64]


class Interval(Strict):
    """A value with its 95 % confidence interval."""

    value: Number
    low: Number
    high: Number

    def scaled(self, factor: float) -> Interval:
        """The interval of the value times a positive `factor`."""
        return Interval(value=factor * self.value, low=factor * self.low, high=factor * self.high)

    def __format__(self, spec: str) -> str:
        """ "0.30 [0.20, 0.40]" for the format `.2f`, which each number gets."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def mean(values: Floats, seed: int) -> Interval:
    """The mean of independent `values`, shape [size]."""
    return ratio(values, np.ones_like(values), seed)


def ratio(values: Floats, counts: Floats, seed: int) -> Interval:
    """Σ values / Σ counts over independent pairs of both, shape [size] each."""
    value, low, high = bounds(values, counts, seed)
    return Interval(value=float(value), low=float(low), high=float(high))


def bounds(values: Floats, counts: Floats, seed: int) -> tuple[Floats, Floats, Floats]:
    """The ratio along the last axis and the ends of its interval.

    Each end is the wider of two intervals. Student's t is right for symmetric values and too short for skewed ones. The
    studentised bootstrap (bootstrap-t) is right for skewed values and too short for a few large symmetric ones.

    Args:
        values: shape [..., size].
        counts: the same shape, positive.
        seed: of the resampling.
    """
    size = values.shape[-1]
    total = counts.sum(-1)
    value = values.sum(-1) / total
    residuals = values - value[..., None] * counts
    error = _error(np.square(residuals).sum(-1), total, size)
    half = t_quantile(size - 1) * error
    below, above = _studentized(residuals, counts, seed)
    return (
        value,
        np.minimum(value - half, value - above * error),
        np.maximum(value + half, value - below * error),
    )


def proportion(successes: int, trials: int) -> Interval:
    """The share of `successes`, with the interval of Clopper and Pearson (1934): its coverage is never below 95 %."""
    from scipy import stats  # slow to import, and `train` does not need it

    found = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="exact")
    return Interval(value=successes / trials, low=float(found.low), high=float(found.high))


def crossed(values: Floats, counts: Floats) -> Interval:
    """Mean over seeds of Σ values / Σ counts, all on the same prompts. Seeds and prompts are both samples.

    Its half-width is √(a² + b²), with a and b the half-widths of the t-intervals over seeds and over prompts. With two
    seeds it is wide, because two seeds say little.

    Args:
        values: shape [seeds, prompts].
        counts: the same shape, positive.
    """
    ratios = values.sum(-1) / counts.sum(-1)
    residuals = (values - ratios[:, None] * counts) / counts.mean(-1, keepdims=True)
    half = _half_width(residuals.mean(0))
    if len(ratios) > 1:
        half = math.hypot(half, _half_width(ratios))
    value = float(ratios.mean())
    return Interval(value=value, low=value - half, high=value + half)


def crossed_proportion(correct: Floats) -> Interval:
    """The share of ones over seeds and prompts, shape [seeds, prompts].

    Two correct and two wrong prompts are added to every seed (Agresti and Coull, 1998). Without them the interval of a
    share of 0 or 1 would be empty.
    """
    added = np.tile([0.0, 0.0, 1.0, 1.0], (len(correct), 1))
    padded = np.concatenate([correct, added], axis=1)
    found = crossed(padded, np.ones_like(padded))
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    return Interval(value=float(correct.mean()), low=low, high=high)


@lru_cache(maxsize=64)
def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` degrees of freedom.

    With x = √ν·tan θ its density is that of cos^{ν−1} θ, which Gauss–Legendre integrates; Newton's method finds x.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi) / 2
    scale, root, value = math.exp(log_scale), freedom**0.5, 1.96
    for _ in range(20):
        angle = math.atan(value / root)
        inside = np.cos(angle * (nodes + 1) / 2) ** (freedom - 1)
        missing = LEVEL / 2 - scale * angle / 2 * float(weights @ inside)
        value += missing * root / scale * math.cos(angle) ** -(freedom + 1)
    return value


def _half_width(values: Floats) -> float:
    """The half-width of the t-interval of the mean of `values`, shape [size]."""
    return t_quantile(len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5


def _studentized(residuals: Floats, counts: Floats, seed: int) -> tuple[Floats, Floats]:
    """Both quantiles of (ratio − true ratio) / its standard error, over resamples of the values."""
    size = residuals.shape[-1]
    drawn = _resamples(size, seed)
    total = counts @ drawn
    shift = residuals @ drawn / total
    squares = (
        np.square(residuals) @ drawn
        - 2 * shift * ((residuals * counts) @ drawn)
        + np.square(shift) * (np.square(counts) @ drawn)
    )
    error = _error(squares.clip(min=0), total, size)
    least = 1e-6 * _error(np.square(residuals).sum(-1), counts.sum(-1), size)[..., None]
    scores = np.where(error > least, shift / np.maximum(error, 1e-300), 0.0)
    below, above = np.quantile(scores, TAILS, axis=-1)
    return below, above


def _error(squares: Floats, total: Floats, size: int) -> Floats:
    """Standard error of a ratio, from the sum of its squared residuals and the sum of its counts."""
    result: Floats = np.sqrt(squares * size / (size - 1)) / total
    return result


@lru_cache(maxsize=8)
def _resamples(size: int, seed: int) -> Floats:
    """How often each value is drawn in each bootstrap resample, shape [size, RESAMPLES]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(size, np.full(size, 1 / size), RESAMPLES).T.astype(np.float64)
