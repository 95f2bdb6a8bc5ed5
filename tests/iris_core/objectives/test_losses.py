"""The objectives against exact arithmetic on tabular distributions, numbers worked on paper, and finite differences."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from iris_core.config.objective import OBJECTIVE_NAMES, WITH_INITIAL_RESPONSES, ObjectivePart
from iris_core.objectives.losses import (
    OBJECTIVES,
    Parameters,
    Rewards,
    effective_sample_size,
    gradient_coefficients,
    iris,
    iris_weights,
    log_mean_exp,
    tilted_risk,
    tilted_weights,
    variational_bound,
)
from iris_core.objectives.normalizer import Normalizer

pytestmark = pytest.mark.unit

NAMES = list(OBJECTIVES)
RELATIVE = [name for name in NAMES if OBJECTIVES[name].relative]
ORDERS = [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
NORMALIZERS = ["unit", "anchored", "running", "batch"]
DATA = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # p_data
OPPONENT = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)  # p_t

rewards_of = st.lists(st.floats(-8, 8), min_size=2, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
tilts = st.floats(-3, 3)


def given_parameters(**changed: Any) -> Parameters:
    """Round numbers for arithmetic on paper: α = 1, no normaliser, no likelihood term, clip 5."""
    return replace(Parameters.of(ObjectivePart(weight_clip=5.0, likelihood_weight=0.0), order=1.0), **changed)


def samples(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Samples whose plain mean is the expectation of `values` under `weights` (multiples of 1/20)."""
    return torch.repeat_interleave(values, (weights * 20).round().long())


def tabular(data: torch.Tensor, opponent: torch.Tensor, reward: torch.Tensor) -> Rewards:
    """Every pair (y, y') of outcomes as often as its probability says (multiples of 1/20 each)."""
    annotated, synthetic = samples(data, reward), samples(opponent, reward)
    return Rewards(annotated.repeat_interleave(20), synthetic.repeat(20))


def renyi(order: float) -> float:
    """D_α(p_data‖p_t)/α, with its limits KL at α = 1 and the mirrored KL at α = 0."""
    if order == 0:
        return (OPPONENT * (OPPONENT / DATA).log()).sum().item()
    if order == 1:
        return (DATA * (DATA / OPPONENT).log()).sum().item()
    return ((DATA**order * OPPONENT ** (1 - order)).sum().log() / (order - 1) / order).item()


# --- IRIS: divergence, worked numbers, limits ----------------------------------------------------------------------


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


@pytest.mark.parametrize("order", ORDERS)
def test_supremum_is_the_renyi_divergence_over_its_order(order):
    """At g = log p_data/p_t, J = D_α/α, and any other g gives less; for α = 2 it is ½·log(1 + χ²)."""
    ratio = (DATA / OPPONENT).log()
    best = variational_bound(samples(DATA, ratio), samples(OPPONENT, ratio), order).item()
    assert best == pytest.approx(renyi(order), abs=1e-6)
    if order == 2.0:
        chi_squared = ((DATA - OPPONENT) ** 2 / OPPONENT).sum().item()
        assert best == pytest.approx(0.5 * math.log(1 + chi_squared), abs=1e-6)
    for direction in torch.eye(3, dtype=torch.float64):
        moved = ratio + 0.05 * direction
        assert variational_bound(samples(DATA, moved), samples(OPPONENT, moved), order) < best


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_the_divergence_is_continuous_where_the_order_has_a_limit(limit):
    assert renyi(limit + 1e-7) == pytest.approx(renyi(limit), abs=1e-6)
    assert renyi(limit - 1e-7) == pytest.approx(renyi(limit), abs=1e-6)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("step", [1e-12, 1e-8, 2e-5, 4.9e-5, 5.1e-5, 1e-4])
def test_value_and_gradient_are_smooth_at_the_orders_zero_and_one(limit, step):
    """Both sides of the limit, on both sides of the switch to the series, lie on one line."""
    values = torch.tensor([0.3, -1.2, 0.7, 2.0], dtype=torch.float64)
    found = []
    for order in (limit - step, limit, limit + step):
        annotated, synthetic = values.clone().requires_grad_(), values.flip(0).requires_grad_()
        bound = variational_bound(annotated, synthetic, order)
        gradient = torch.cat(torch.autograd.grad(bound, (annotated, synthetic)))
        found.append(torch.cat([bound.detach()[None], gradient]))
    below, middle, above = found
    assert torch.allclose((below + above) / 2, middle, atol=1e-6, rtol=0)
    assert torch.allclose(below, above, atol=10 * step + 1e-9, rtol=0)


def test_the_series_meets_the_formula_at_the_switch():
    reward = torch.tensor([0.3, -1.2, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    series = tilted_risk(reward, 4.9e-5)  # 4.9e-5 · max|r| is just below the switch
    formula = log_mean_exp(4.9e-5 * reward).squeeze() / 4.9e-5
    assert series.item() == pytest.approx(formula.item(), abs=1e-9)
    by_series, by_formula = (torch.autograd.grad(v, reward)[0] for v in (series, formula))
    assert torch.allclose(by_series, by_formula, atol=1e-9)


@given(rewards_of, tilts)
def test_tilted_risk_lies_between_the_extremes_and_grows_with_the_tilt(reward, tilt):
    risk = tilted_risk(reward, tilt)
    assert reward.min() - 1e-9 <= risk <= reward.max() + 1e-9
    assert tilted_risk(reward, tilt + 0.5) >= risk - 1e-9


@given(rewards_of, rewards_of, st.floats(-1, 3))
def test_weighted_losses_have_the_gradient_of_the_bound(one, other, order):
    """With Z = mean e^{s r} and no clip, ∇ mean(losses) = ∇L_α by definition of the weights."""
    size = min(len(one), len(other))
    annotated, synthetic = one[:size].requires_grad_(), other[:size].requires_grad_()
    rewards, normalizer = Rewards(annotated, synthetic), Normalizer("batch", order)
    normalizer.update(rewards)
    parameters = given_parameters(order=order, log_normalizers=normalizer.log_values(annotated), clip=1e30)
    by_weights = torch.autograd.grad(iris(rewards, parameters).mean(), (annotated, synthetic))
    bound = variational_bound(annotated, synthetic, order)
    by_bound = torch.autograd.grad(-bound, (annotated, synthetic))
    for left, right in zip(by_weights, by_bound, strict=True):
        assert torch.allclose(left, right, atol=1e-7)


@pytest.mark.parametrize("order", [0.5, 1.5, 2.0])
def test_the_unit_normaliser_descends_the_alpha_divergence(order):
    """∇ = that of −(E e^{(α−1) r} − 1)/(α−1) + (E e^{α r'} − 1)/α."""
    annotated = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    synthetic = torch.tensor([-0.4, 0.1, 0.6], dtype=torch.float64, requires_grad=True)
    tilted = ((order - 1) * annotated).expm1().mean() / (order - 1)
    form = (order * synthetic).expm1().mean() / order - tilted
    losses = iris(Rewards(annotated, synthetic), given_parameters(order=order))
    for left, right in zip(
        torch.autograd.grad(losses.mean(), (annotated, synthetic)),
        torch.autograd.grad(form, (annotated, synthetic)),
        strict=True,
    ):
        assert torch.allclose(left, right, atol=1e-12)


def test_the_bound_has_the_gradient_that_finite_differences_give():
    annotated = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64, requires_grad=True)
    synthetic = torch.tensor([0.1, 0.9, -0.5], dtype=torch.float64, requires_grad=True)
    for order in ORDERS:
        assert torch.autograd.gradcheck(
            lambda a, s, order=order: variational_bound(a, s, order), (annotated, synthetic)
        )


# --- the family: names, fixed points, optima, hand arithmetic ------------------------------------------------------


def test_every_objective_of_the_list_has_a_loss():
    assert NAMES == OBJECTIVE_NAMES
    assert {name for name in NAMES if OBJECTIVES[name].responses == 3} == set(WITH_INITIAL_RESPONSES)


def gradient_at(
    name: str, parameters: Parameters, data: torch.Tensor, logits: torch.Tensor, beta: float
) -> torch.Tensor:
    """Exact gradient of the expected loss by the logits of p_θ = p_t = softmax(logits), data ~ `data`."""
    logits = logits.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    relative = OBJECTIVES[name].relative
    reward = beta * (logprobs - logprobs.detach() if relative else logprobs)
    rewards = tabular(data, logits.detach().softmax(0), reward)
    loss = OBJECTIVES[name].loss(rewards, parameters).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "tspin"])
def test_data_is_a_fixed_point(name, beta):
    """p_t = p_data ⇒ the gradient is 0; elsewhere it is not. T-SPIN, which has no opponent, does not claim it."""
    for order in ORDERS if name == "iris" else [1.0]:
        parameters = given_parameters(order=order, likelihood_weight=0.5)
        assert gradient_at(name, parameters, DATA, DATA.log(), beta).abs().max() < 1e-12
        assert gradient_at(name, parameters, DATA, OPPONENT.log(), beta).abs().max() > 1e-3


def test_t_spin_without_opponent_has_no_fixed_point_at_the_data():
    """Its gradient there is E ½·tanh(m/2)·(∇log p(y) − ∇log p(y')) over y, y' ~ p_data: it flattens."""
    gradient = gradient_at("tspin", given_parameters(), DATA, DATA.log(), 1.0)
    assert gradient[0] > 1e-3  # the most probable outcome is lowered


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_first_step_has_no_loss_and_uniform_weights(normalizer, order):
    zero = Rewards(torch.zeros(5), torch.zeros(5))
    state = Normalizer(normalizer, order)
    for _ in range(2):
        parameters = given_parameters(order=order, log_normalizers=state.log_values(zero.annotated))
        assert OBJECTIVES["iris"].batch_loss(zero, parameters).item() == 0
        assert iris(zero, parameters).tolist() == [0.0] * 5
        assert [weights.tolist() for weights in iris_weights(zero, parameters)] == [[1.0] * 5] * 2
        state.update(zero)


def best_reward(name: str, parameters: Parameters) -> torch.Tensor:
    """The tabular reward g that minimises E_data loss(g, ·) + E_t loss(·, g), by Newton's method."""
    reward = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [reward], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = OBJECTIVES[name].loss(tabular(DATA, OPPONENT, reward), parameters).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return reward.detach()


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_space_is_best_at_the_log_density_ratio(ratio):
    found = best_reward("space", given_parameters(ratio=ratio))
    assert torch.allclose(found, (DATA / OPPONENT).log(), atol=1e-6)


@pytest.mark.parametrize("curvature", [0.5, 1.0, 4.0])
def test_spif_is_best_inside_its_bound(curvature):
    found = best_reward("spif", given_parameters(curvature=curvature))
    expected = (DATA - OPPONENT) / (DATA + OPPONENT) / curvature
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.abs().max() < 1 / curvature


def curvatures(name: str, parameters: Parameters) -> torch.Tensor:
    """Second derivatives of one pair's loss by (r, r') at r = r' = 0, scaled so that the first are (−1, 1)."""

    def up_and_down(sides: torch.Tensor) -> torch.Tensor:
        rewards = Rewards(sides[0:1], sides[1:2])
        up, down = gradient_coefficients(OBJECTIVES[name], rewards, parameters)
        return torch.cat([-up, down])

    zero, step = torch.zeros(2, dtype=torch.float64), 1e-5
    first = up_and_down(zero)
    assert first[1] == -first[0] > 0
    moves = torch.eye(2, dtype=torch.float64) * step
    columns = [(up_and_down(zero + move) - up_and_down(zero - move)) / (2 * step) for move in moves]
    return torch.stack(columns, dim=1) / first[1]


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_where_the_others_sit_on_the_axis_of_orders(order):
    """IRIS curves by 1 − α on the annotated side and by α on the synthetic one; SPACE and SPIF with c = ½ as α = ½."""
    expected = torch.diag(torch.tensor([1 - order, order], dtype=torch.float64))
    found = curvatures("iris", given_parameters(order=order))
    assert torch.allclose(found, expected, atol=1e-6)
    half = torch.diag(torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert torch.allclose(curvatures("space", given_parameters()), half, atol=1e-6)
    assert torch.allclose(curvatures("spif", given_parameters(curvature=0.5)), half, atol=1e-6)
    coupled = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64)
    assert torch.allclose(curvatures("spin", given_parameters()), coupled, atol=1e-6)


PAIR = Rewards(torch.tensor([0.4]), torch.tensor([-0.6]), torch.tensor([-1.1]))


def test_losses_against_hand_arithmetic():
    """r = .4, r' = −.6, r° = −1.1, so m = 1.

    SPIN log(1 + e^−1) = .313262; hinge 1 − m = 0, and .5 at m = .5; SPACE at μ = 2, log 2 = .693147: log(1 + e^.293147)
    = .850424, 2·log(1 + e^−1.293147) = .484960, sum 1.335384 (μ = 1: log(1 + e^−.4) + log(1 + e^−.6) = .513015 +
    .437488); SPIF, c = 1: −1 + (.16 + .36)/2 = −.74; T-SPIN, b = .1: .313262 + .1·log(1 + e^−.5) = .313262 + .0474077;
    SFT, 8 tokens a pair: −.4/8; IRIS, α = 2, λ = .5: −(e^.4 + .5)·.4 + e^−1.2·(−.6) = −.796730 − .180717.
    """

    def loss(name: str, rewards: Rewards = PAIR, **parameters: float) -> float:
        return OBJECTIVES[name].loss(rewards, given_parameters(**parameters)).item()

    assert loss("spin") == pytest.approx(0.313262, abs=1e-6)
    assert loss("hinge") == pytest.approx(0.0, abs=1e-6)
    assert loss("hinge", Rewards(torch.tensor([0.4]), torch.tensor([-0.1]))) == pytest.approx(0.5)
    assert loss("space") == pytest.approx(0.950503, abs=1e-6)
    assert loss("space", ratio=2.0) == pytest.approx(1.335384, abs=1e-5)
    assert loss("spif") == pytest.approx(-0.74, abs=1e-6)
    assert loss("tspin") == pytest.approx(0.360670, abs=1e-6)
    assert loss("tspin", Rewards(*PAIR[:2])) == pytest.approx(0.313262, abs=1e-6)
    assert loss("sft", mean_tokens=8.0) == pytest.approx(-0.05)
    assert loss("iris", order=2.0, likelihood_weight=0.5) == pytest.approx(-0.977447, abs=1e-5)


def test_the_reported_loss_of_a_batch():
    """One pair: T_s[r] = r for every s, so L_α − λ·r = −.4 − .6 − .5·.4 = −1.2; for the others it is the mean."""
    iris_loss = OBJECTIVES["iris"].batch_loss(PAIR, given_parameters(order=2.0, likelihood_weight=0.5))
    assert iris_loss.item() == pytest.approx(-1.2)
    two = Rewards(torch.tensor([0.4, 0.0]), torch.tensor([-0.6, 0.0]))
    expected = (0.313262 + math.log(2)) / 2
    assert OBJECTIVES["spin"].batch_loss(two, given_parameters()).item() == pytest.approx(expected)


def test_spin_is_the_logistic_loss_on_the_difference_of_scaled_log_ratios():
    """ℓ(λ·log p_θ(y)/p_t(y) − λ·log p_θ(y')/p_t(y')), ℓ(t) = log(1 + e^−t), with λ = .1 (arXiv 2401.01335, eq. 4.7)."""
    annotated = torch.tensor([[-12.0, -15.0], [-20.0, -20.5]])  # log p_θ, log p_t of two annotated responses
    synthetic = torch.tensor([[-9.0, -8.0], [-31.0, -30.0]])
    scaled = [0.1 * (side[:, 0] - side[:, 1]) for side in (annotated, synthetic)]
    losses = OBJECTIVES["spin"].loss(Rewards(*scaled), given_parameters())
    by_hand = [math.log(1 + math.exp(-t)) for t in (0.1 * (3.0 + 1.0), 0.1 * (0.5 + 1.0))]
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_pulls_annotated_up_and_synthetic_down(name):
    up, down = gradient_coefficients(OBJECTIVES[name], PAIR, given_parameters(order=1.5))
    if name == "hinge":  # the margin is reached
        assert up.tolist() == down.tolist() == [0.0]
        return
    assert up.item() > 0
    assert down.item() == 0 if name in ("sft", "rft") else down.item() > 0


def test_the_gradient_coefficients_of_iris_are_its_weights():
    parameters = given_parameters(order=1.5, likelihood_weight=0.25)
    w, v = iris_weights(PAIR, parameters)
    up, down = gradient_coefficients(OBJECTIVES["iris"], PAIR, parameters)
    assert up.item() == pytest.approx(w.item() + 0.25)
    assert down.item() == pytest.approx(v.item())


@pytest.mark.parametrize("name", NAMES)
def test_losses_have_the_gradient_that_finite_differences_give(name):
    if name == "iris":
        pytest.skip("its weights are constants; see the tests of the bound")
    sides = tuple(
        torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for values in ([0.3, -1.2, 0.7], [0.1, 0.9, -0.5], [-0.8, 0.2, 0.4])
    )
    loss, parameters = OBJECTIVES[name].loss, given_parameters(ratio=2.0, mean_tokens=3.0)
    assert torch.autograd.gradcheck(lambda *r: loss(Rewards(*r), parameters), sides)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_nothing_overflows_for_huge_rewards_in_fp32(name, order):
    huge = torch.tensor([1e4, -1e4, 0.0])
    sides = [huge.clone().requires_grad_(), huge.flip(0).requires_grad_(), huge.roll(1)]
    for kind in NORMALIZERS if name == "iris" else ["unit"]:
        normalizer = Normalizer(kind, order)
        normalizer.update(Rewards(*sides))
        parameters = given_parameters(order=order, log_normalizers=normalizer.log_values(sides[0]))
        loss = OBJECTIVES[name].loss(Rewards(*sides), parameters)
        value = OBJECTIVES[name].batch_loss(Rewards(*sides), parameters)
        gradients = torch.autograd.grad(loss.sum(), sides[:2], materialize_grads=True)
        assert all(torch.isfinite(part).all() for part in (loss, value, *gradients))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_micro_batches_and_ranks_give_the_whole(name, normalizer):
    """Pairs may be dealt out in any way: with the batch's constants, the parts' gradients are the whole's."""
    torch.manual_seed(0)
    sides = torch.randn(3, 8, dtype=torch.float64)
    state = Normalizer(normalizer, 1.5)
    state.update(Rewards(*sides))
    parameters = given_parameters(order=1.5, log_normalizers=state.log_values(sides), mean_tokens=5.0, clip=2.0)

    def gradient(parts: list[list[int]]) -> torch.Tensor:
        leaf = sides.clone().requires_grad_()
        for part in parts:
            losses = OBJECTIVES[name].loss(Rewards(*leaf[:, part]), parameters)
            (losses.sum() / 8).backward()
        assert leaf.grad is not None
        return leaf.grad

    whole = gradient([list(range(8))])
    assert whole.abs().sum() > 0
    for parts in ([[0, 1, 2], [3], [4, 5, 6, 7]], [[7], [6], [5], [4], [3], [2], [1], [0]]):
        assert torch.allclose(gradient(parts), whole, atol=1e-12)


def test_leading_axes_are_independent_runs():
    """Two runs side by side, with an order and a normaliser each, are the runs one by one."""
    torch.manual_seed(1)
    sides, orders = torch.randn(2, 2, 6), torch.tensor([[0.5], [2.0]])
    for kind in NORMALIZERS:
        together = Normalizer(kind, orders)
        together.update(Rewards(*sides))
        both = iris(Rewards(*sides), given_parameters(order=orders, log_normalizers=together.log_values(sides)))
        for run in range(2):
            alone, order = Normalizer(kind, orders[run].item()), orders[run].item()
            alone.update(Rewards(*sides[:, run]))
            parameters = given_parameters(order=order, log_normalizers=alone.log_values(sides))
            assert torch.allclose(iris(Rewards(*sides[:, run]), parameters), both[run], atol=1e-6)


# --- responses of different lengths --------------------------------------------------------------------------------


def lengths_apart(end: torch.Tensor, cut: bool) -> Rewards:
    """Rewards (β = 1) of a policy that ends a response at every token with probability σ(end), against one with ½.

    Both sides end after the first token (½) or the second (¼), or do not (¼). Synthetic responses are cut there, at
    L = 2; annotated ones continue to 3L = 6 without an end. So the two differ in length only.
    """
    ended, went_on = (logsigmoid(sign * end) - math.log(0.5) for sign in (1, -1))
    first = torch.stack([ended, ended, went_on + ended, 2 * went_on])
    rest = torch.stack([0 * end, 0 * end, 0 * end, 4 * went_on])
    annotated, rest = (side.repeat_interleave(4) for side in (first, rest))  # with each of
    synthetic = first.repeat(4)
    if cut:
        return Rewards(annotated, synthetic, rest=rest)
    return Rewards(annotated + rest, synthetic)


def pull_towards_length(name: str, cut: bool, **parameters: float) -> float:
    """−∂ loss/∂ end at the first step: above 0 where the objective wants responses to end, below where to go on."""
    end = torch.zeros((), dtype=torch.float64, requires_grad=True)
    rewards = lengths_apart(end, cut)
    loss = OBJECTIVES[name].loss(rewards, given_parameters(order=2.0, clip=1.0, **parameters)).mean()
    return -torch.autograd.grad(loss, end)[0].item()


@pytest.mark.parametrize("name", RELATIVE)
def test_the_comparison_does_not_learn_that_synthetic_responses_are_cut(name):
    assert pull_towards_length(name, cut=True) == pytest.approx(0, abs=1e-12)
    assert pull_towards_length(name, cut=False) < -0.1


@pytest.mark.parametrize("end", [-0.5, -0.2, 0.5])
def test_a_policy_that_goes_on_longer_shows_no_gap_where_both_sides_are_cut(end):
    """Cut, both sides have one distribution: no policy has J > 0 on it. Uncut, one that goes on longer has."""
    for order in (0.5, 1.0, 2.0):
        bounds = {
            cut: variational_bound(*lengths_apart(torch.tensor(end).double(), cut)[:2], order) for cut in (True, False)
        }
        assert bounds[True] <= 1e-12
        assert (bounds[False] > 0) == (end < 0)


def test_the_likelihood_sees_the_whole_annotated_response():
    """A quarter of annotated responses goes on for 4 more tokens; their score at ½ is −½ each: −½·4·¼ = −½ a pair.

    SFT on pairs of 1 token on average: −½ and the first L tokens' share, ½·½ + ½·½·0 − ½·2·¼ = 0.
    """
    assert pull_towards_length("sft", cut=True) == pytest.approx(-0.5)
    assert pull_towards_length("iris", cut=True, likelihood_weight=2.0) == pytest.approx(-1.0)


def test_the_reported_loss_of_iris_counts_the_rest_as_likelihood():
    """r = .4 of the cut and .3 beyond it: −.4 − .6 − .5·.7 = −1.35."""
    rewards = PAIR._replace(rest=torch.tensor([0.3]))
    loss = OBJECTIVES["iris"].batch_loss(rewards, given_parameters(order=2.0, likelihood_weight=0.5))
    assert loss.item() == pytest.approx(-1.35)


# --- weights and normalisers ---------------------------------------------------------------------------------------


@given(rewards_of, st.floats(0, 2), st.floats(0.1, 1), st.sampled_from([-1, 1]))
def test_effective_sample_size_falls_as_the_tilt_grows(reward, tilt, more, sign):
    def size(tilt: float) -> float:
        return effective_sample_size(tilted_weights(reward, sign * tilt, 0.0, math.inf)).item()

    assert 1 - 1e-9 <= size(tilt + more) <= size(tilt) + 1e-6 <= len(reward) + 1e-5
    assert size(0) == pytest.approx(len(reward))


@given(rewards_of, tilts, st.floats(-5, 5))
def test_normalised_weights_do_not_change_when_all_rewards_move(reward, tilt, shift):
    def weights(reward: torch.Tensor) -> torch.Tensor:
        return tilted_weights(reward, tilt, log_mean_exp(tilt * reward), math.inf)

    assert torch.allclose(weights(reward + shift), weights(reward), rtol=1e-6)
    assert weights(reward).mean().item() == pytest.approx(1)


def test_effective_sample_size_of_known_weights():
    assert effective_sample_size(torch.tensor([3.0, 1.0])).item() == pytest.approx(16 / 10)
    assert effective_sample_size(torch.zeros(3)).item() == 0
    assert effective_sample_size(torch.tensor([-3.0, -1.0])).item() == pytest.approx(16 / 10)


def test_weights_are_clipped_and_constant():
    reward = torch.tensor([10.0, 0.0], requires_grad=True)
    weights = tilted_weights(reward, 1.0, 0.0, clip=5.0)
    assert weights.tolist() == pytest.approx([5.0, 1.0])
    assert not weights.requires_grad


def both(value: float) -> Rewards:
    return Rewards(torch.full((3,), value), torch.full((3,), value))


def test_running_equals_batch_for_one_batch_and_then_averages():
    """α = 1: log Z of the synthetic side is 2 after r' = 2, then log(.9·e² + .1·1) = log 6.750150 = 1.909565."""
    rewards, like = both(2.0), torch.zeros(1)
    running, batch = Normalizer("running", 1.0), Normalizer("batch", 1.0)
    for normalizer in (running, batch):
        normalizer.update(rewards)
    assert [v.tolist() for v in running.log_values(like)] == [[0.0], [2.0]]
    assert [v.tolist() for v in batch.log_values(like)] == [[0.0], [2.0]]
    running.update(both(0.0))
    assert running.log_values(like)[1].item() == pytest.approx(1.909565, abs=1e-5)
    running.update(both(-800.0))
    assert running.log_values(like)[1].item() == pytest.approx(1.909565 + math.log(0.9), abs=1e-5)


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_the_state_is_carried_over_a_checkpoint(kind):
    normalizer, like = Normalizer(kind, 1.7), torch.zeros(1, dtype=torch.float64)
    fresh = Normalizer(kind, 1.7)
    fresh.load_state_dict(normalizer.state_dict())
    assert [v.tolist() for v in fresh.log_values(like)] == [[0.0], [0.0]]
    for value in (0.3, 0.9):
        normalizer.update(both(value))
    restored = Normalizer(kind, 1.7)
    restored.load_state_dict(normalizer.state_dict())
    for one in (normalizer, restored):
        one.update(both(-0.2))
    for left, right in zip(restored.log_values(like), normalizer.log_values(like), strict=True):
        assert torch.equal(left, right)


def test_anchored_never_goes_below_one():
    normalizer, like = Normalizer("anchored", 1.0), torch.zeros(1)
    normalizer.update(both(-5.0))
    assert [v.tolist() for v in normalizer.log_values(like)] == [[0.0], [0.0]]
    for _ in range(60):
        normalizer.update(both(5.0))
    assert normalizer.log_values(like)[1].item() > 4


def test_a_parameter_that_an_objective_does_not_know_changes_nothing():
    changed = given_parameters(order=3.0, clip=1.0, likelihood_weight=2.0)
    for name in (name for name in NAMES if name != "iris"):
        loss = OBJECTIVES[name].loss
        assert torch.equal(loss(PAIR, changed), loss(PAIR, given_parameters()))
