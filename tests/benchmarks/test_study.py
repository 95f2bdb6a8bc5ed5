"""The study: exact divergences against Monte Carlo, stacked runs against single ones, steps against autograd."""

import dataclasses

import pytest
import torch

from benchmarks.study.language import divergence, log_likelihood, positions, sample
from benchmarks.study.losses import LEAST_SHARE, STUDY_OBJECTIVES, largest
from benchmarks.study.network import RMSProp, random_students, random_teachers, student_table
from benchmarks.study.selfplay import Runs, play
from benchmarks.study.variants import GROUPS, fixed, moving
from benchmarks.study.world import Setting, build_world
from iris_core.config import ObjectivePart
from iris_core.objectives.losses import (
    Parameters,
    Rewards,
    effective_sample_size,
    variational_bound,
)

pytestmark = pytest.mark.unit

PARAMETERS = Parameters.of(ObjectivePart(weight_clip=5.0, likelihood_weight=0.0), order=1.0)

TINY = Setting(
    seeds=2,
    topics=2,
    tokens=4,
    length=5,
    hidden=6,
    teacher_hidden=6,
    pairs=32,
    all_pairs=64,
    validation=32,
    iterations=2,
    batch=8,
    warm_epochs=4,
)


@pytest.fixture(scope="module")
def world():
    return build_world(TINY)


def test_exact_divergence_is_the_mean_log_ratio_of_samples():
    generator = torch.Generator().manual_seed(0)
    p, q = (random_teachers(generator, 1, 3, 5, 8, 1.0) for _ in range(2))
    topics = torch.randint(3, (1, 40000), generator=generator)
    responses = sample(p, topics, torch.rand(1, 40000, 6, generator=generator))
    where = positions(topics, responses, 3, 5)
    ratio = (log_likelihood(p, where) - log_likelihood(q, where)).squeeze(0)
    error = ratio.std() / len(ratio) ** 0.5
    assert divergence(p, q, 6).item() == pytest.approx(ratio.mean().item(), abs=4 * error.item())
    assert divergence(p, p, 6).item() == pytest.approx(0, abs=1e-9)


def test_rmsprop_is_torchs():
    start = random_students(torch.Generator().manual_seed(1), 1, 2, 4, 6)
    target = torch.full_like(student_table(start), -1.0)

    def loss(weights):
        return (student_table(weights) - target).square().mean()

    ours = {name: value.clone().requires_grad_() for name, value in start.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer, reference = RMSProp(ours, 1e-2), torch.optim.RMSprop(theirs.values(), lr=1e-2)
    for _ in range(3):
        optimizer.step(loss(ours), torch.tensor([1e-2]))
        reference.zero_grad()
        loss(theirs).backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1e-2)
        reference.step()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-6)


@pytest.mark.parametrize("variant", [fixed("running", 1.5), moving("anchored"), fixed("batch", 2.0)], ids=str)
def test_stacked_runs_equal_single_ones(world, variant):
    cells = [(1e-3, 0.1), (1e-2, 1.0)]
    together = play(world, variant, Runs.of(cells, TINY.seeds))
    alone = Runs(torch.tensor([1e-2]), torch.tensor([[1.0]]), torch.tensor([1]))
    for name, values in play(world, variant, alone).items():
        assert torch.allclose(values[0], together[name][3], rtol=1e-3, atol=1e-4), name


def test_a_step_of_iris_follows_the_bound():
    """With the batch normaliser and no clip, the gradient of the mean loss is that of −J."""
    annotated, synthetic = (torch.randn(16, dtype=torch.float64, requires_grad=True) for _ in "ab")
    for order in (0.5, 1.0, 2.0):
        rewards = Rewards(annotated, synthetic)
        log_z = tuple(
            torch.logsumexp(tilt * reward.detach(), 0) - torch.tensor(16.0).log()
            for tilt, reward in ((order - 1, annotated), (order, synthetic))
        )
        parameters = dataclasses.replace(PARAMETERS, order=order, log_normalizers=log_z, clip=1e9)
        ours = torch.autograd.grad(STUDY_OBJECTIVES["iris"].loss(rewards, parameters).mean(), (annotated, synthetic))
        bound = torch.autograd.grad(-variational_bound(annotated, synthetic, order), (annotated, synthetic))
        for found, expected in zip(ours, bound, strict=True):
            assert torch.allclose(found, expected)


@pytest.mark.parametrize("name", sorted(STUDY_OBJECTIVES))
def test_objectives_keep_their_runs_apart(name):
    """The loss of a run does not depend on its neighbours in the stack."""
    torch.manual_seed(0)
    rewards = Rewards(*torch.randn(3, 2, 8))
    parameters = dataclasses.replace(PARAMETERS, order=torch.tensor([[2.0], [1.5]]))
    together = STUDY_OBJECTIVES[name].loss(rewards, parameters)
    first = dataclasses.replace(parameters, order=torch.tensor([[2.0]]))
    alone = STUDY_OBJECTIVES[name].loss(Rewards(*(side[:1] for side in rewards[:3])), first)
    assert torch.allclose(together[:1], alone)


def test_largest_share_keeps_half_of_the_batch_effective():
    reward = 3 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))

    def effective(share):
        return effective_sample_size((share * reward).exp()).unsqueeze(-1) / 64

    share = largest(effective, reward)
    assert ((share > 0) & (share < 1)).all()
    assert (effective(share) >= LEAST_SHARE).all()
    assert (effective(share + 0.01) < LEAST_SHARE).all()


def test_names_of_variants_are_unique():
    names = [variant.name for variants in GROUPS.values() for variant in variants]
    assert len(set(names)) == len(names)
