"""The gap against closed forms, and its interval against a known standard error."""

import numpy as np
import pytest

from iris_core.gap import interval, measure_gap, ratio_of_sums, variational_gap

pytestmark = pytest.mark.unit


def test_gap_by_hand():
    """mean(1, 3) − log((e^0 + e^{log 3})/2) = 2 − log 2."""
    assert variational_gap(np.array([1.0, 3.0]), np.array([0.0, np.log(3)])) == pytest.approx(
        2 - np.log(2)
    )


def test_equal_rewards_have_no_gap():
    gap = measure_gap(np.zeros(20), np.zeros(20), seed=0)
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(size=400)
    found = interval(lambda rows: values[rows].mean(axis=-1), 400, seed=1)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_ratio_of_sums_weighs_by_tokens():
    assert ratio_of_sums(
        np.array([-2.0, -10.0]), np.array([1.0, 9.0]), seed=0
    ).value == pytest.approx(-1.2)
