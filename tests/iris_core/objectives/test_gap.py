"""The gap against closed forms, and what it says about how much stands behind it."""

import math

import numpy as np
import pytest

from iris_core.common.intervals import mean
from iris_core.objectives.gap import gap_warnings, measure_gap, variational_gap

pytestmark = pytest.mark.unit


def measured(annotated, synthetic):
    return measure_gap(annotated, synthetic, mean(annotated - synthetic, seed=0))


def test_gap_by_hand():
    """mean(1, 3) − log((e^0 + e^{log 3})/2) = 2 − log 2; weights 1 and 3: ESS 16/10."""
    annotated, synthetic = np.array([1.0, 3.0]), np.array([0.0, np.log(3)])
    assert variational_gap(annotated, synthetic) == pytest.approx(2 - np.log(2))
    found = measured(annotated, synthetic)
    assert found.value == pytest.approx(2 - np.log(2))
    assert found.ess == pytest.approx(1.6)
    assert found.pairs == 2


def test_equal_rewards_have_no_gap():
    gap = measured(np.zeros(20), np.zeros(20))
    assert (gap.value, gap.ess, gap.confirmed) == (0.0, 20.0, False)


def test_a_gap_is_confirmed_by_the_margin_not_by_its_sign():
    rewards = np.random.default_rng(0).normal(size=(2, 64))
    assert measured(rewards[0] + 3, rewards[1]).confirmed
    small = measured(rewards[0] * 1e-4 + 1e-6, rewards[1] * 1e-4)
    assert abs(small.value) < 1e-4
    assert not small.confirmed


def test_more_than_the_logarithm_of_the_pairs_is_warned_of():
    """The gap of 64 pairs whose synthetic rewards are all −10 is 10 > ln 64 = 4.16."""
    assert gap_warnings(measured(np.full(64, 4.0), np.zeros(64))) == []
    (line,) = gap_warnings(measured(np.zeros(64), np.full(64, -10.0)))
    assert "10 nats, is above ln(64) = 4.16" in line
    assert not set("\n`") & set(line)  # a line of text on a page, too


def test_few_pairs_overestimate_a_large_gap():
    """Rewards log dP/dQ of N(4, 1) to N(0, 1): KL = 8, but E e^{r'} = 1 rests on samples that 64 draws do not hold."""
    normal = np.random.default_rng(0).normal(size=(2, 500, 64))
    found = variational_gap(4 * (normal[0] + 4) - 8, 4 * normal[1] - 8)
    assert (found > math.log(64)).mean() > 0.9
    assert np.median(found) > 9
