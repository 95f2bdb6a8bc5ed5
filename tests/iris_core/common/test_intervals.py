"""What is called a 95 % interval contains the true value in at least 93 % of simulated experiments; seeds are fixed."""

import numpy as np
import pytest
from scipy import stats

from iris_core.common.intervals import (
    bounds,
    crossed,
    crossed_proportion,
    mean,
    proportion,
    ratio,
    t_quantile,
)

pytestmark = pytest.mark.unit

EXPERIMENTS = 2000
LEAST = 0.93
DISTRIBUTIONS = {
    "normal": (lambda g, shape: g.normal(size=shape), 0.0),
    "laplace": (lambda g, shape: g.laplace(size=shape), 0.0),
    "exponential": (lambda g, shape: g.exponential(size=shape), 1.0),
    "left-skewed": (lambda g, shape: -g.exponential(size=shape), -1.0),
    "gamma": (lambda g, shape: g.gamma(2.0, size=shape), 2.0),
    "lognormal": (lambda g, shape: g.lognormal(0, 0.5, size=shape), np.exp(0.125)),
    "outliers": (
        lambda g, shape: g.normal(size=shape) * np.where(g.random(shape) < 0.1, 5, 1),
        0.0,
    ),
    "few learned": (lambda g, shape: g.normal(size=shape) + 4 * (g.random(shape) < 0.15), 0.6),
}


@pytest.mark.parametrize("size", [16, 32, 64, 256])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_mean_lies_in_its_interval(name, size):
    draw, expected = DISTRIBUTIONS[name]
    values = draw(np.random.default_rng(0), (EXPERIMENTS, size))
    _, low, high = bounds(values, np.ones_like(values), seed=0)
    assert np.mean((low <= expected) & (expected <= high)) >= LEAST


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("shape", [1.0, 8.0])
def test_a_log_probability_per_token_lies_in_its_interval(size, shape):
    """−1.5 nats a token, with noise of each token and of each response; lengths from nearly equal to exponential."""
    generator = np.random.default_rng(1)
    tokens = np.ceil(generator.gamma(shape, 30, size=(EXPERIMENTS, size)))
    noise = generator.normal(size=(2, EXPERIMENTS, size))
    logprobs = -1.5 * tokens + 2 * np.sqrt(tokens) * noise[0] + 0.3 * tokens * noise[1]
    _, low, high = bounds(logprobs, tokens, seed=0)
    assert np.mean((low <= -1.5) & (high >= -1.5)) >= LEAST


@pytest.mark.parametrize("trials", [16, 48, 256])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_proportion_lies_in_its_interval(trials, share):
    """Exact: the coverage is the binomial probability of those counts whose interval contains the share."""
    covered = 0.0
    for successes in range(trials + 1):
        found = proportion(successes, trials)
        inside = found.low <= share <= found.high
        covered += inside * stats.binom.pmf(successes, trials, share)
    assert covered >= 0.95


def test_none_of_48_is_not_nothing():
    """The upper end is 1 − .025^{1/48} = .0740."""
    found = proportion(0, 48)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.0740, abs=1e-4)
    over_seeds = crossed_proportion(np.zeros((3, 48)))
    assert over_seeds.value == over_seeds.low == 0.0
    assert over_seeds.high > 0.05


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_a_mean_over_seeds_and_prompts_lies_in_its_interval(seeds, spread):
    """Prompts of spread 1, seeds of another, what is left .7; one seed says nothing about others."""
    generator, inside = np.random.default_rng(2), 0
    for _ in range(500):
        of_seed = spread * generator.normal(size=(seeds, 1)) if seeds > 1 else 0.0
        of_prompt = generator.normal(size=(1, 32))
        values = of_seed + of_prompt + 0.7 * generator.normal(size=(seeds, 32))
        found = crossed(values, np.ones_like(values))
        inside += found.low <= 0 <= found.high
    assert inside / 500 >= LEAST


def test_intervals_by_hand():
    """Means of 1, 2, 3: 2 ± t(2)·1/√3; two seeds of two prompts, Σ −6/4 and −2/4 a token: −1."""
    assert t_quantile(2) == pytest.approx(4.3027, abs=1e-4)
    assert t_quantile(63) == pytest.approx(1.9983, abs=1e-4)
    three = mean(np.array([1.0, 2.0, 3.0]), seed=0)
    assert three.value == 2.0
    assert three.high - three.value >= 4.3027 / np.sqrt(3) - 1e-4
    weighed = ratio(np.array([-2.0, -10.0]), np.array([1.0, 9.0]), seed=0)
    assert weighed.value == pytest.approx(-1.2)
    tokens = np.full((2, 2), 2.0)
    assert crossed(np.array([[-2.0, -4.0], [-1.0, -1.0]]), tokens).value == pytest.approx(-1)
    alike = crossed(np.full((2, 2), -3.0), tokens)
    assert (alike.low, alike.value, alike.high) == (-1.5, -1.5, -1.5)


def test_equal_values_have_an_interval_of_no_width_and_others_a_finite_one():
    same = mean(np.zeros(20), seed=0)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    two = mean(np.array([0.0, 1.0]), seed=0)
    assert np.isfinite([two.low, two.high]).all()
    assert two.low < 0.5 < two.high
