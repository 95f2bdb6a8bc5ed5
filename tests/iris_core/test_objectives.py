"""The objective against arithmetic that can be checked on paper (design: tabular distributions, fp64)."""

import math

import pytest
import torch

from iris_core.objectives import (
    Normalizer,
    effective_sample_size,
    iris_loss,
    log_mean_exp,
    tilted_risk,
    tilted_weights,
    variational_bound,
)

pytestmark = pytest.mark.unit


def expected(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Samples whose plain mean is the expectation under `weights` (multiples of 1/20)."""
    return torch.repeat_interleave(values, (weights * 20).round().long())


def test_worked_numbers_of_two_outcomes():
    """p = (.5, .5), p_θ = (.9, .1), α = .5, β = 1: r = log(p_θ/p) = (log 1.8, log .2).

    E e^{(α−1) r} = ½·(1.8^−½ + .2^−½) = ½·(.74536 + 2.23607) = 1.4907; E e^{α r} = ½·(1.34164 + .44721) = .8944.
    """
    reward = torch.tensor([1.8, 0.2], dtype=torch.float64).log()
    assert log_mean_exp(-0.5 * reward).exp().item() == pytest.approx(1.4907, abs=1e-4)
    assert log_mean_exp(0.5 * reward).exp().item() == pytest.approx(0.8944, abs=1e-4)
    assert variational_bound(reward, reward, 0.5).item() == pytest.approx(
        -2 * math.log(1.490712) - 2 * math.log(0.894427), abs=1e-5
    )


@pytest.mark.parametrize("order", [0.5, 1.0, 1.5, 2.0])
def test_supremum_is_the_renyi_divergence_over_its_order(order):
    """At g = log q/p, J = D_α(q‖p)/α; q = (.5, .3, .2), p = (.2, .3, .5). For α = 2 it is ½·log(1 + χ²)."""
    q, p = (
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    )
    ratio = (q / p).log()
    if order == 1.0:
        divergence = (q * ratio).sum()
    else:
        divergence = (q**order * p ** (1 - order)).sum().log() / (order - 1) / order
    best = variational_bound(expected(q, ratio), expected(p, ratio), order)
    assert best.item() == pytest.approx(divergence.item(), abs=1e-9)
    if order == 2.0:
        chi_squared = ((q - p) ** 2 / p).sum().item()
        assert best.item() == pytest.approx(0.5 * math.log(1 + chi_squared), abs=1e-9)
    for direction in torch.eye(3, dtype=torch.float64):
        moved = ratio + 0.05 * direction
        assert variational_bound(expected(q, moved), expected(p, moved), order) < best


def test_tilted_risk_is_smooth_at_zero():
    reward = torch.tensor([0.3, -1.2, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    values, gradients = [], []
    for tilt in (-2e-5, -1e-12, 0.0, 1e-12, 2e-5, 6e-5):
        value = tilted_risk(reward, tilt)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, reward)[0])
    assert values == pytest.approx([reward.mean().item()] * 6, abs=1e-4)
    assert values[1] == pytest.approx(values[3], abs=1e-11)
    direct = log_mean_exp(6e-5 * reward) / 6e-5  # the other side of the switch to the series
    assert values[5] == pytest.approx(direct.item(), abs=1e-9)
    assert torch.allclose(gradients[5], torch.autograd.grad(direct, reward)[0], atol=1e-9)


def test_weighted_losses_have_the_gradient_of_the_bound():
    """With Z = mean e^{s r} and no clip, ∇ mean(losses) = ∇L_α by definition of the weights."""
    torch.manual_seed(0)
    annotated, synthetic = (
        torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    normalizer = Normalizer("batch", 1.7)
    normalizer.see(annotated.detach(), synthetic.detach())
    losses, _, _ = iris_loss(annotated, synthetic, 1.7, normalizer.log_values(), clip=1e9)
    by_weights = torch.autograd.grad(losses.mean(), (annotated, synthetic))
    by_bound = torch.autograd.grad(
        -variational_bound(annotated, synthetic, 1.7), (annotated, synthetic)
    )
    for one, other in zip(by_weights, by_bound, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_zero_rewards_give_uniform_weights_and_zero_loss():
    zero = torch.zeros(5)
    for kind in ("unit", "anchored", "running", "batch"):
        normalizer = Normalizer(kind, 2.0)
        if normalizer.needs_whole_batch:
            normalizer.see(zero, zero)
        losses, w, v = iris_loss(zero, zero, 2.0, normalizer.log_values())
        assert losses.tolist() == [0.0] * 5
        assert w.tolist() == v.tolist() == [1.0] * 5


def test_no_overflow_for_huge_rewards_in_fp32():
    reward = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    for order in (-1.0, 0.0, 0.5, 1.0, 2.0):
        bound = variational_bound(reward, reward, order)
        assert torch.isfinite(bound)
        assert torch.isfinite(torch.autograd.grad(bound, reward)[0]).all()
        assert all(torch.isfinite(part).all() for part in iris_loss(reward, reward, order))


def test_effective_sample_size_falls_with_the_tilt_and_ignores_shifts():
    reward = torch.tensor([0.1, -0.4, 1.3, 0.8, -2.0])
    sizes = [
        effective_sample_size(tilted_weights(reward, tilt, 0.0, 1e9)).item()
        for tilt in (0, 0.5, 1, 2, 4)
    ]
    assert sizes[0] == pytest.approx(5)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 1
    shifted = effective_sample_size(tilted_weights(reward + 3, 1.0, 0.0, 1e9))
    assert shifted.item() == pytest.approx(sizes[2], rel=1e-5)
    assert effective_sample_size(torch.tensor([3.0, 1.0])).item() == pytest.approx(16 / 10)


def test_weights_are_clipped_and_constant():
    reward = torch.tensor([10.0, 0.0], requires_grad=True)
    weights = tilted_weights(reward, 1.0, 0.0, clip=5.0)
    assert weights.tolist() == pytest.approx([5.0, 1.0])
    assert not weights.requires_grad


def test_running_normaliser_averages_in_log_space_and_survives_a_checkpoint():
    """One batch with mean e^r' = e^2 at α = 1: log Z = log(.9·1 + .1·e²) = log 1.63891 = .49403."""
    normalizer = Normalizer("running", 1.0)
    normalizer.see(torch.full((3,), 2.0), torch.full((3,), 2.0))
    assert normalizer.log_values() == pytest.approx((0.0, 0.49403), abs=1e-5)
    restored = Normalizer("running", 1.0)
    restored.load_state_dict(normalizer.state_dict())
    assert restored.log_values() == normalizer.log_values()
    normalizer.see(torch.zeros(3), torch.full((3,), -800.0))
    assert normalizer.log_synthetic == pytest.approx(0.49403 + math.log(0.9), abs=1e-5)


def test_anchored_never_goes_below_one():
    normalizer = Normalizer("anchored", 1.0)
    normalizer.see(torch.zeros(3), torch.full((3,), -5.0))
    assert normalizer.log_values() == (0.0, 0.0)
    normalizer.see(torch.zeros(3), torch.full((3,), 5.0))
    assert normalizer.log_values()[1] > 0
