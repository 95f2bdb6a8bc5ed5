"""Verified self-play against exact enumeration, numbers worked on paper, and finite differences."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from iris_core.config.objective import VERIFIABLE, ObjectivePart
from iris_core.objectives.losses import (
    OBJECTIVES,
    Parameters,
    Rewards,
    SampleWeights,
    gradient_coefficients,
)
from iris_core.objectives.normalizer import Normalizer, weighted_log_mean_exp
from iris_core.objectives.verified import VERIFIED, sample_weights

pytestmark = pytest.mark.unit

NAMES = list(VERIFIED)
RIGHT = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
WRONG = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
OPPONENT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # p_t of three answers
IS_RIGHT = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


def given_parameters(**changed: Any) -> Parameters:
    """Round numbers for arithmetic on paper: α = 1, no normaliser, no likelihood term, clip 1."""
    return replace(Parameters.of(ObjectivePart(likelihood_weight=0.0), order=1.0), **changed)


def one_pair(annotated: float = 1.0) -> SampleWeights:
    """One right sample of four, ρ = 3, κ = 1."""
    return sample_weights(RIGHT[None], WRONG[None], torch.tensor([annotated], dtype=torch.float64), 3.0, 1.0)


def random_batch(seed: int = 0, pairs: int = 6, samples: int = 4) -> Rewards:
    """Verdicts of all three kinds, some prompts without annotation."""
    torch.manual_seed(seed)
    verdicts = torch.randint(-1, 2, (pairs, samples))
    annotated = (torch.arange(pairs) % 3 > 0).double()
    weights = sample_weights((verdicts > 0).double(), (verdicts < 0).double(), annotated, 3.0, 0.5)
    assert weights.up.any()
    assert weights.down.any()
    sides = torch.randn(pairs, 1 + samples, dtype=torch.float64)
    return Rewards(sides[:, 0] * annotated, sides[:, 1:], weights=weights)


def test_the_objectives_that_learn_from_verdicts():
    assert [*VERIFIABLE, "rft"] == NAMES


def test_weights_of_four_samples():
    """p̂ = 1/4: the right sample weighs 3·(3/4)/4 = .5625, each wrong one 3·(1/4)/4 = .1875."""
    weights = one_pair()
    assert weights.up.tolist() == [[0.5625, 0, 0, 0]]
    assert weights.down.tolist() == [[0, 0.1875, 0.1875, 0.1875]]
    assert weights.share.tolist() == [0.25]


def test_a_part_of_the_share_is_subtracted():
    """κ = ½, ρ = 3: with p̂ = 1/4, 3·(1 − ⅛)/4 = .65625 and 3·⅛/4 = .09375; all right: 3·½/4 each; κ = 0 is RFT."""
    here = torch.ones(1, dtype=torch.float64)
    weights = sample_weights(RIGHT[None], WRONG[None], here, 3.0, 0.5)
    assert weights.up.tolist() == [[0.65625, 0, 0, 0]]
    assert weights.down.tolist() == [[0, 0.09375, 0.09375, 0.09375]]
    all_right = sample_weights(torch.ones(1, 4), torch.zeros(1, 4), here, 3.0, 0.5)
    assert all_right.up.tolist() == [[0.375] * 4]
    assert not all_right.down.any()
    all_wrong = sample_weights(torch.zeros(1, 4), torch.ones(1, 4), here, 3.0, 0.5)
    assert not all_wrong.up.any()
    assert not all_wrong.down.any()


@pytest.mark.parametrize(("right", "wrong"), [((1, 1, 1), (0, 0, 0)), ((0, 0, 0), (1, 1, 1)), ((0, 1, 0), (0, 0, 0))])
def test_prompts_whose_decided_samples_agree_get_no_push_from_the_advantage(right, wrong):
    """κ = 1."""
    weights = sample_weights(torch.tensor([right]).double(), torch.tensor([wrong]).double(), torch.ones(1), 3.0, 1.0)
    assert not weights.up.any()
    assert not weights.down.any()


def test_undecided_samples_are_neither_counted_nor_pushed():
    """Right, wrong, undecided, undecided: p̂ = 1/2. Whatever the undecided ones' rewards, loss and gradient stay."""
    right, wrong = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 1.0, 0, 0]])
    weights = sample_weights(right, wrong, torch.ones(1), 4.0, 1.0)
    assert weights.up.tolist() == [[0.5, 0, 0, 0]]
    assert weights.down.tolist() == [[0, 0.5, 0, 0]]
    none = sample_weights(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), 4.0, 1.0)
    assert none.share.isnan().all()
    assert not none.up.any()
    assert not none.down.any()
    for name in NAMES:
        found = []
        for reward in (0.0, 7.0):
            rewards = Rewards(torch.tensor([0.4]), torch.tensor([[0.1, -0.6, reward, -reward]]), weights=weights)
            up, down = gradient_coefficients(VERIFIED[name], rewards, given_parameters())
            found.append([*up.tolist(), *down[0, :2].tolist(), VERIFIED[name].loss(rewards, given_parameters()).item()])
            assert down[0, 2:].tolist() == [0, 0]
        assert found[0] == found[1]


def test_losses_against_hand_arithmetic():
    """r = .4; r' = .4 of the right sample and −.6 of three wrong ones; U = .5625, D = .1875, so ΣD = .5625.

    The right sample gives −.5625·.4 = −.225. IRIS, λ = .5: −1.5·.4 − .225 + .5625·e^−.6·(−.6) = −.6 − .225 − .185224.
    SPIN: −.225 + .5625·log(1 + e^−1) = −.225 + .176210; without annotation .5625·log(1 + e^−.6) = .246087 instead.
    SPACE: log(1 + e^−.4) − .225 + .246087 = .513015 + .021087. SPIF, c = 1: (−.4 + .08) − .225 + .5625·(−.6 + .18).
    """

    def loss(name: str, annotated: float = 1.0, **parameters: float) -> float:
        synthetic = torch.tensor([[0.4, -0.6, -0.6, -0.6]], dtype=torch.float64)
        rewards = Rewards(torch.tensor([0.4 * annotated]).double(), synthetic, weights=one_pair(annotated))
        return VERIFIED[name].loss(rewards, given_parameters(**parameters)).item()

    assert loss("iris", likelihood_weight=0.5) == pytest.approx(-1.010224, abs=1e-6)
    assert loss("spin") == pytest.approx(-0.048790, abs=1e-6)
    assert loss("space") == pytest.approx(0.534102, abs=1e-6)
    assert loss("spif") == pytest.approx(-0.78125, abs=1e-6)
    assert loss("iris", annotated=0.0, likelihood_weight=0.5) == pytest.approx(-0.410224, abs=1e-6)
    assert loss("spin", annotated=0.0) == pytest.approx(0.021087, abs=1e-6)
    assert loss("space", annotated=0.0) == pytest.approx(0.021087, abs=1e-6)
    assert loss("spif", annotated=0.0) == pytest.approx(-0.46125, abs=1e-6)


def test_both_weights_of_iris_on_paper():
    """α = 3, log Z = .2 and .5: w = e^(2·(−.4) − .2), v = e^(3·(−.6) − .5)."""
    synthetic = torch.tensor([[0.4, -0.6, -0.6, -0.6]]).double()
    rewards = Rewards(torch.tensor([-0.4]).double(), synthetic, weights=one_pair())
    parameters = given_parameters(order=3.0, clip=10.0, log_normalizers=(0.2, 0.5))
    up, down = gradient_coefficients(VERIFIED["iris"], rewards, parameters)
    assert up.item() == pytest.approx(math.exp(-1.0))
    assert down[0].tolist() == pytest.approx([-0.5625, *[0.1875 * math.exp(-2.3)] * 3])


@pytest.mark.parametrize("likelihood", [0.0, 1.0])
def test_annotated_responses_are_learned_to_their_end(likelihood):
    """log p = −1 of the tokens up to L, −2 of those after it: IRIS, α = 1, raises both alike, as RFT does."""
    rest = torch.tensor([-2.0]).double().requires_grad_()
    annotated = torch.tensor([-1.0]).double().requires_grad_()
    for name, weight in (("iris", 1 + likelihood), ("rft", 1.0)):
        rewards = Rewards(annotated, torch.zeros(1, 4).double(), rest=rest, weights=one_pair())
        loss = VERIFIED[name].loss(rewards, given_parameters(likelihood_weight=likelihood)).sum()
        assert [side.item() for side in torch.autograd.grad(loss, (annotated, rest))] == [-weight, -weight]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_per_token(name):
    batch = random_batch()
    whole, of_token = (VERIFIED[name].loss(batch, given_parameters(mean_tokens=tokens)) for tokens in (1.0, 8.0))
    torch.testing.assert_close(whole, 8 * of_token)


def test_rft_on_paper():
    """log p = −3 of the annotated response, −2 of the right one of four; R = 3/4; 9 tokens: (3 + .75·2)/9 = .5."""
    weights = sample_weights(RIGHT[None], WRONG[None], torch.ones(1), 3.0, 0.0)
    assert weights.up.tolist() == [[0.75, 0, 0, 0]]
    assert not weights.down.any()
    rewards = Rewards(torch.tensor([-3.0]), torch.tensor([[-2.0, -5.0, -5.0, -7.0]]), weights=weights)
    assert VERIFIED["rft"].loss(rewards, given_parameters(mean_tokens=9.0)).item() == pytest.approx(0.5)


def test_rft_without_right_samples_is_sft():
    nothing = sample_weights(torch.zeros(2, 4), torch.ones(2, 4), torch.ones(2), 3.0, 0.0)
    rewards = Rewards(torch.tensor([-3.0, -1.0]), torch.randn(2, 4), rest=torch.tensor([-1.0, 0.0]), weights=nothing)
    parameters = given_parameters(mean_tokens=7.0)
    assert torch.equal(VERIFIED["rft"].loss(rewards, parameters), OBJECTIVES["sft"].loss(rewards, parameters))


def expected_gradient(
    name: str, samples: int, annotated: float, baseline: float = 1.0, **parameters: float
) -> torch.Tensor:
    """Exact gradient of the expected loss at r = 0 by the logits of p_θ, over all outcomes of n samples."""
    logits = OPPONENT.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    reward = logprobs - logprobs.detach() if VERIFIED[name].relative else logprobs
    drawn = torch.tensor(list(itertools.product(range(3), repeat=samples)))
    right = IS_RIGHT[drawn]
    here = torch.full((len(drawn),), annotated, dtype=torch.float64)
    weights = sample_weights(right, 1 - right, here, 3.0, 0.0 if name == "rft" else baseline)
    rewards = Rewards(annotated * reward[:1].expand(len(drawn)), reward[drawn], weights=weights)
    losses = VERIFIED[name].loss(rewards, given_parameters(**parameters))
    (gradient,) = torch.autograd.grad((OPPONENT[drawn].prod(dim=1) * losses).sum(), logits)
    return gradient


@pytest.mark.parametrize("baseline", [0.5, 1.0])
@pytest.mark.parametrize("samples", [2, 3, 5])
@pytest.mark.parametrize("name", ["iris", "spif"])
def test_the_expected_gradient_at_the_start_is_that_of_rft(name, samples, baseline):
    """1 − κ/n of it, since p̂ contains the sample itself; E_t ∇log p = 0 removes the rest of the baseline."""
    found, rft = (expected_gradient(each, samples, annotated=0.0, baseline=baseline) for each in (name, "rft"))
    assert rft.abs().max() > 0.1
    torch.testing.assert_close(found, rft * (1 - baseline / samples))


def test_the_expected_gradient_on_paper():
    """p_t = (.5, .3, .2), the second right, ρ = 3, n = 2: −3·½·E[right·∇log p] = −1.5·.3·(e_2 − p_t)."""
    by_hand = -1.5 * 0.3 * (torch.tensor([0.0, 1.0, 0.0]).double() - OPPONENT)
    torch.testing.assert_close(expected_gradient("iris", 2, annotated=0.0), by_hand)
    annotated = -2 * (torch.tensor([1.0, 0.0, 0.0]).double() - OPPONENT)  # w + λ = 2, the first answer annotated
    found = expected_gradient("iris", 2, annotated=1.0, likelihood_weight=1.0)
    torch.testing.assert_close(found, by_hand + annotated)


def test_two_answers_on_paper():
    """p_t = (¾, ¼), the second right; n = 2, ρ = 2, κ = 1: both drawn, in either order, with probability 2·¾·¼ = 3/8.

    Then U = D = 2·½/2 = ½ and the gradient by the second logit is −½·¾ − ½·¼ = −½, in expectation −3/16. RFT:
    −2·E[right]·¾ = −2·¼·¾ = −3/8, twice as much: (n − 1)/n = ½.
    """
    probabilities = torch.tensor([0.75, 0.25], dtype=torch.float64)
    right = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    weights = sample_weights(right, 1 - right, torch.zeros(1), 2.0, 1.0)
    assert (weights.up.tolist(), weights.down.tolist()) == ([[0, 0.5]], [[0.5, 0]])
    logits = probabilities.log().requires_grad_()
    reward = logits.log_softmax(0) - probabilities.log()
    loss = VERIFIED["iris"].loss(Rewards(torch.zeros(1), reward[None], weights=weights), given_parameters())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[1].item() == pytest.approx(-0.5)
    assert 3 / 8 * gradient[1].item() == pytest.approx(-3 / 16)


def test_the_push_on_a_wrong_sample_fades_and_is_clipped():
    rewards = Rewards(torch.zeros(3), torch.tensor([[0.0, -1.0], [0.0, -30.0], [0.0, 5.0]]))
    right = torch.tensor([[1.0, 0.0]] * 3)
    weighed = rewards._replace(weights=sample_weights(right, 1 - right, torch.zeros(3), 4.0, 1.0))
    _, down = gradient_coefficients(VERIFIED["iris"], weighed, given_parameters())
    assert down[:, 0].tolist() == [-1.0] * 3
    assert down[:, 1].tolist() == pytest.approx([math.exp(-1), 0, 1], abs=1e-6)


def test_equal_samples_computed_once_with_the_sum_of_their_weights():
    whole = one_pair()
    once = SampleWeights(whole.annotated, whole.up[:, :2], torch.tensor([[0.0, 0.5625]]).double(), whole.share)
    for name in NAMES:
        losses = [
            VERIFIED[name].loss(Rewards(torch.tensor([0.4]).double(), samples, weights=weights), given_parameters())
            for samples, weights in (
                (torch.tensor([[0.4, -0.6, -0.6, -0.6]]).double(), whole),
                (torch.tensor([[0.4, -0.6]]).double(), once),
            )
        ]
        torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", NAMES)
def test_losses_have_the_gradient_that_finite_differences_give(name):
    if name == "iris":
        pytest.skip("its weights are constants; see the tests on paper")
    batch = random_batch()
    sides = tuple(each.clone().requires_grad_() for each in batch[:2])

    def loss(*sides: torch.Tensor) -> torch.Tensor:
        return VERIFIED[name].loss(Rewards(*sides, weights=batch.weights), given_parameters(ratio=2.0))

    assert torch.autograd.gradcheck(loss, sides)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_and_ranks_give_the_whole(name):
    batch = random_batch()
    normalizer = Normalizer("running", 1.0)
    normalizer.update(batch)
    parameters = given_parameters(log_normalizers=normalizer.log_values(batch.annotated))
    whole = VERIFIED[name].loss(batch, parameters)
    for part in ([0, 1], [2], [3, 4, 5]):
        index = torch.tensor(part)
        alone = Rewards(batch.annotated[part], batch.synthetic[part], weights=batch.weights.of(index))
        torch.testing.assert_close(VERIFIED[name].loss(alone, parameters), whole[part])


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes_are_independent_runs(name):
    """Two runs side by side, with an order and a normaliser each, are the runs one by one."""
    one, other = random_batch(0), random_batch(1)
    weights = SampleWeights(*(torch.stack(sides) for sides in zip(one.weights, other.weights, strict=True)))
    both = Rewards(*(torch.stack(sides) for sides in zip(one[:2], other[:2], strict=True)), weights=weights)
    orders = torch.tensor([[0.5], [2.0]])
    together = Normalizer("anchored", orders)
    together.update(both)
    found = VERIFIED[name].loss(
        both, given_parameters(order=orders, log_normalizers=together.log_values(both.annotated))
    )
    for run, batch in enumerate((one, other)):
        alone = Normalizer("anchored", orders[run].item())
        alone.update(batch)
        parameters = given_parameters(order=orders[run].item(), log_normalizers=alone.log_values(batch.annotated))
        torch.testing.assert_close(VERIFIED[name].loss(batch, parameters), found[run])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows_for_huge_rewards_in_fp32(name):
    batch = random_batch()
    huge = Rewards(
        *((1e4 * each).float().requires_grad_() for each in batch[:2]),
        weights=SampleWeights(*(each.float() for each in batch.weights)),
    )
    for kind in ("unit", "anchored", "running", "batch"):
        normalizer = Normalizer(kind, 2.0)
        normalizer.update(huge)
        parameters = given_parameters(order=2.0, log_normalizers=normalizer.log_values(huge.annotated))
        loss = VERIFIED[name].loss(huge, parameters)
        gradients = torch.autograd.grad(loss.sum(), huge[:2], materialize_grads=True)
        assert all(torch.isfinite(part).all() for part in (loss, *gradients))


def test_the_normaliser_sees_wrong_samples_and_annotated_responses_alone():
    """α = 2. Annotated: r = 1 of one pair, the other has none: Z = e. Wrong: D = 1 of r' = .5, 3 of r' = 0.

    Z' = (e + 3)/4 = 1.429570, log .357374; the right sample with r' = 9 does not count.
    """
    weights = SampleWeights(
        annotated=torch.tensor([1.0, 0.0]),
        up=torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        down=torch.tensor([[0.0, 1.0], [3.0, 0.0]]),
        share=torch.tensor([0.5, 0.0]),
    )
    rewards = Rewards(torch.tensor([1.0, 0.0]), torch.tensor([[9.0, 0.5], [0.0, 5.0]]), weights=weights)
    normalizer, like = Normalizer("batch", 2.0), torch.zeros(1)
    normalizer.update(rewards)
    annotated, synthetic = normalizer.log_values(like)
    assert annotated.item() == pytest.approx(1.0)
    assert synthetic.item() == pytest.approx(0.357374, abs=1e-6)
    values = torch.tensor([0.5, 2.0, 0.0]).double()
    plain = torch.cat([values, values[:1]]).exp().mean().log()
    assert weighted_log_mean_exp(values, torch.tensor([2.0, 1.0, 1.0]).double()).item() == pytest.approx(plain.item())


@pytest.mark.parametrize("kind", ["anchored", "running", "batch"])
def test_a_batch_without_wrong_samples_leaves_their_normaliser(kind):
    normalizer, like = Normalizer(kind, 1.0), torch.zeros(1, dtype=torch.float64)
    batch = random_batch()
    nothing = batch._replace(weights=batch.weights._replace(down=torch.zeros_like(batch.weights.down)))
    normalizer.update(nothing)
    assert normalizer.log_values(like)[1].item() == 0
    normalizer.update(batch._replace(synthetic=batch.synthetic + 3))
    before = normalizer.log_values(like)[1].item()
    assert before > 0
    normalizer.update(nothing)
    assert normalizer.log_values(like)[1].item() == pytest.approx(before, abs=1e-12)
