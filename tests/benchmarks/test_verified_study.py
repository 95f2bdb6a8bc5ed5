"""Panel c of the study: exact values by enumeration, weights on paper, stacked runs against single ones, selection."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch

from benchmarks.study.language import log_likelihood, positions
from benchmarks.study.network import random_students, student_table
from benchmarks.study.results import Interval
from benchmarks.study.selfplay import Runs
from benchmarks.study.tables import signed
from benchmarks.study.verified import exact, report
from benchmarks.study.verified.__main__ import CONFIRMING_SEEDS, confirming, exploring
from benchmarks.study.verified.losses import (
    OBJECTIVES_OF_STUDY,
    balanced_weights,
    from_first_difference,
    nearest_wrong,
    normalized,
)
from benchmarks.study.verified.methods import BUDGETS as STEP_BUDGETS
from benchmarks.study.verified.methods import Method, balanced, groups, iris, rft
from benchmarks.study.verified.play import play
from benchmarks.study.verified.regimes import COMP, H8, LEAK, Regime, Split, build_world, table_of
from benchmarks.study.verified.report import counterpart
from benchmarks.study.verified.results import Job, Result, compute, load
from benchmarks.study.verified.selection import (
    Choice,
    Model,
    best_likelihood,
    choose,
    model,
    validity_at,
    validity_at_likelihood,
    wins,
)
from iris_core.config import ObjectivePart
from iris_core.objectives.losses import Parameters, Rewards

pytestmark = pytest.mark.unit

TINY = Regime(
    "tiny",
    tokens=4,
    allowed=2,
    hidden=4,
    pairs=16,
    batch=8,
    epochs=2,
    factors=3,
    topics=9,
    split=Split(3, 3, 1, 2),
    length=3,
    validation=16,
    iterations=2,
    seeds=2,
)
PARAMETERS = Parameters.of(ObjectivePart(), order=1.0)


@pytest.fixture(scope="module")
def world():
    return build_world(TINY)


@pytest.fixture(scope="module")
def everything():
    """A table over two topics, and all 27 responses of three tokens to each with their positions and log p."""
    table = student_table(random_students(torch.Generator().manual_seed(3), 1, 2, 3, 5))
    responses = torch.tensor(list(itertools.product(range(3), repeat=3))).repeat(2, 1).unsqueeze(0)
    topics = torch.arange(2).repeat_interleave(27).unsqueeze(0)
    where = positions(topics, responses, 2, 3)
    return table, where, log_likelihood(table, where)


def test_exact_values_are_sums_over_all_responses(everything):
    table, where, log_p = everything
    other = student_table(random_students(torch.Generator().manual_seed(4), 1, 2, 3, 5))
    possible = torch.rand(table.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    start = torch.tensor([[0.25, 0.75]])
    p = (log_p.exp() * start.repeat_interleave(27, dim=1)).squeeze(0)
    visits, mass = exact.walk(table.exp(), start, 3)
    valid = possible.flatten()[where].all(-1).squeeze(0)
    ratio = (log_p - log_likelihood(other, where)).squeeze(0)
    assert mass.item() == pytest.approx(1)
    assert exact.validity(table, possible.float(), start, 3).item() == pytest.approx(p[valid].sum().item(), rel=1e-5)
    assert exact.divergence(visits, table, other).item() == pytest.approx((p * ratio).sum().item(), rel=1e-5)
    assert exact.entropy(visits, table).item() == pytest.approx(-(p * log_p.squeeze(0)).sum().item(), rel=1e-5)


def test_a_teacher_keeps_to_its_grammar(world):
    p = world.teacher.exp()
    assert (world.possible.sum(1) == TINY.allowed).all()
    assert torch.allclose(p.sum(1), torch.ones(()))
    assert torch.allclose((p * ~world.possible).sum(1), torch.tensor(LEAK), rtol=1e-3)
    assert world.valid(world.train.where, torch.arange(2)).float().mean() > 0.99


def test_prompts_are_split_and_made_of_two_words(world):
    annotated, others, held_out, test = (
        set(topics[0].tolist())
        for topics in (world.train.topics, world.unannotated, world.validation.topics, world.test_probe.topics)
    )
    assert [len(each) for each in (annotated, others, held_out, test)] == [3, 3, 1, 2]
    assert len(annotated | others | held_out | test) == 9
    assert torch.equal(world.start[0].nonzero().flatten(), torch.tensor(sorted(test)))


def test_a_prompt_is_the_sum_of_its_words(world):
    words = world.initial["topic"]
    prompts = torch.stack([words[:, :, i] + words[:, :, 3 + j] for i in range(3) for j in range(3)], dim=2)
    assert torch.allclose(table_of(world.initial, TINY), student_table({**world.initial, "topic": prompts}))


def test_weights_by_hand():
    """ρ = 3, right right right wrong: p̂ = 3/4; with κ = ½ the baseline is 3/8, smoothed and κ = 1 it is 3.5/5."""
    right, rho, ones = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]]), torch.tensor(3.0), torch.ones(1, 1)
    half = balanced_weights(right, ones, rho, "prompt", 0.5)
    assert half.up.flatten().tolist() == pytest.approx([3 / 4 * 5 / 8] * 3 + [0])
    assert half.down.flatten().tolist() == pytest.approx([0, 0, 0, 3 / 4 * 3 / 8])
    assert balanced_weights(right, ones, rho, "smoothed", 1.0).down.sum().item() == pytest.approx(3 / 4 * 0.7)
    two = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    common = balanced_weights(two, torch.ones(1, 2), rho, "common", 1.0)
    assert common.down.flatten().tolist() == pytest.approx([0, 3 / 8, 3 / 8, 3 / 8])
    scaled = normalized(common, rho)
    assert (scaled.up + scaled.down).sum(-1).mean().item() == pytest.approx(3)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_the_expected_gradient_does_not_depend_on_the_baseline(everything, strength):
    """At r = 0, over all responses as samples: Σ p·(U − D)·∇log p = ρ·Σ p·right·∇log p for a constant p̂."""
    table, where, log_p = everything
    right = (torch.arange(54) % 3 > 0).float()
    p = log_p.detach().squeeze(0).exp() / 2
    share = float((p * right).sum())
    weights = 3 * torch.where(right > 0, 1 - strength * share, -strength * share)
    leaf = table.clone().requires_grad_()
    logits = leaf.log_softmax(1)
    expected, found = (
        torch.autograd.grad((p * w * log_likelihood(logits, where).squeeze(0)).sum(), leaf, retain_graph=True)[0]
        for w in (3 * right, weights)
    )
    assert torch.allclose(found, expected, atol=1e-6)


def test_negatives_nearest_to_a_right_sample_and_from_its_first_difference():
    tokens = torch.tensor([[[[1, 2, 3], [1, 2, 4], [5, 2, 4], [5, 6, 7]]]])
    weights = balanced_weights(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), torch.ones(1, 1), torch.tensor(4.0), "prompt", 1)
    assert nearest_wrong(weights, tokens).down.flatten().tolist() == pytest.approx([0, 0.75, 0, 0])
    annotated = torch.tensor([[[5, 6, 8]]])
    for here, last in ((1, [0, 0, 1]), (0, [1, 0, 0])):  # with and without an annotated response
        given = weights._replace(annotated=torch.full((1, 1), float(here)))
        suffix, token = (
            from_first_difference(given, tokens, annotated, alone).squeeze().tolist() for alone in (False, True)
        )
        assert token == [[1, 1, 1], [0, 0, 1], [0, 1, 0] if here else [1, 0, 0], last]
        assert suffix == [[1, 1, 1], [0, 0, 1], [0, 1, 1] if here else [1, 1, 1], [0, 0, 1] if here else [1, 1, 1]]


def test_balanced_without_negatives_is_rft():
    rewards = Rewards(torch.randn(1, 5), torch.randn(1, 5, 4))
    right = (torch.arange(20).view(1, 5, 4) % 2).float()
    weights = balanced_weights(right, torch.ones(1, 5), torch.tensor(3.0), "prompt", 0.0)
    rewards = rewards._replace(weights=weights)
    ours, theirs = (OBJECTIVES_OF_STUDY[True][name].loss(rewards, PARAMETERS) for name in ("balanced", "rft"))
    assert torch.allclose(ours, theirs)


def test_a_push_fades_with_the_log_ratio():
    samples = torch.tensor([[[-1.0]]], requires_grad=True)
    weights = balanced_weights(torch.zeros(1, 1, 1), torch.ones(1, 1), torch.tensor(2.0), "smoothed", 1.0)
    rewards = Rewards(torch.zeros(1, 1), samples, weights=weights)
    for name, factor in (("balanced", math.exp(-1)), ("reinforce", 1.0)):
        loss = OBJECTIVES_OF_STUDY[True][name].loss(rewards, PARAMETERS).sum()
        assert torch.autograd.grad(loss, samples)[0].item() == pytest.approx(2 * 0.25 * factor)


@pytest.mark.parametrize(
    "method",
    [
        Method("sft", "sft"),
        Method("adaptive", adaptive=True),
        iris(3, prompts="all", noise=0.2),
        balanced(0.5, prompts="unannotated", negatives="suffix", refreshed=True),
    ],
    ids=lambda method: method.name,
)
def test_stacked_runs_equal_single_ones(world, method):
    together = play(world, method, Runs.of([(1e-3, 3.0), (1e-2, 1.0)], TINY.seeds))
    alone = play(world, method, Runs(torch.tensor([1e-2]), torch.tensor([[1.0]]), torch.tensor([1])))
    for name, values in alone.items():
        assert torch.allclose(values[0], together[name][3], rtol=1e-3, atol=1e-4), name


def test_wrong_samples_do_not_touch_rft(world):
    """A verifier that calls every response wrong leaves the annotated pairs alone, whatever ρ is."""
    strict = dataclasses.replace(world, possible=torch.zeros_like(world.possible))
    runs = Runs.of([(1e-2, 3.0), (1e-2, 30.0)], TINY.seeds)
    strictly, truly = (play(each, rft(2), runs)["validation"].view(2, TINY.seeds, -1) for each in (strict, world))
    assert torch.allclose(strictly[0], strictly[1], atol=1e-5)
    assert (truly[0] - truly[1]).abs()[:, -1].min() > 0.01


def test_verified_samples_raise_validity(world):
    """Ten times the steps at a large weight: the share of valid responses rises on all prompts with samples."""
    runs = Runs.of([(3e-2, 30.0)], TINY.seeds)
    everywhere = dataclasses.replace(world, start=torch.full_like(world.start, 1 / 9))
    validity = play(everywhere, dataclasses.replace(rft(4, prompts="all"), budget=10), runs)["validity"][..., 0]
    assert (validity[:, -1] > validity[:, 0] + 0.1).all()


def _result(method, validation, valid):
    """Cells × iterations, the same on two seeds."""
    measures = {
        name: np.repeat(np.array(values, dtype=float)[:, None], 2, axis=1)
        for name, values in (("validation", validation), ("sampled_validity", valid))
    }
    cells = tuple((float(cell), 1.0) for cell in range(len(validation)))
    return Result(Job(method, TINY, cells), measures, 0.0)


def test_the_budget_bounds_what_validity_may_cost():
    supervised = _result(Method("sft", "sft"), [[-10, -9, -11]], [[0.1, 0.1, 0.1]])
    method = _result(rft(1), [[-10, -9.5, -12.9], [-10, -13.1, float("nan")]], [[0.1, 0.2, 0.5], [0.1, 0.9, 1.0]])
    best = best_likelihood([supervised])
    assert best == -9
    assert choose(method, None, best) == Choice((0.0, 1.0), 1)
    assert choose(method, 1.0, best) == Choice((0.0, 1.0), 1)
    assert choose(method, 4.0, best) == Choice((0.0, 1.0), 2)
    assert model(method, Choice((1.0, 1.0), 1)).at("sampled_validity").tolist() == [0.9, 0.9]


def test_fresh_seeds_get_the_chosen_cells():
    supervised = _result(Method("sft", "sft"), [[-10, -9]], [[0.1, 0.1]])
    method = _result(rft(1), [[-10, -9.5], [-10, -12.0]], [[0.1, 0.2], [0.1, 0.9]])
    _, job = confirming([supervised, method])
    assert job.cells == ((0.0, 1.0), (1.0, 1.0))
    assert job.regime.draw == TINY.draw + 1


def test_validity_at_equal_entropy_and_wins():
    cold = Model(
        {
            "entropy": np.array([[4.0, 2.0]]),
            "validity": np.array([[0.2, 0.6]]),
            "greedy": np.array([1.0]),
            "scores": np.array([[1.0, 2.0, 3.0, 4.0]]),
        }
    )
    assert validity_at(cold, np.array([3.0])).tolist() == pytest.approx([0.4])
    assert validity_at(cold, np.array([1.0])).tolist() == pytest.approx([0.8])
    assert validity_at(cold, np.array([9.0])).tolist() == pytest.approx([0.2])
    other = Model({"scores": np.array([[0.0, 2.0, 5.0, 3.0]])})
    assert wins(cold, other).tolist() == [2.5 / 4]


def test_validity_at_equal_likelihood():
    """Models in any order, each seed with its own; beyond the last one its value."""
    ladder = [
        Model({"validation": np.array(likelihood), "validity": np.array(valid)})
        for likelihood, valid in (
            ([-10.0, -20.0], [0.2, 0.0]),
            ([-14.0, -22.0], [0.6, 1.0]),
            ([-9.0, -20.0], [0.1, 0.0]),
        )
    ]
    assert validity_at_likelihood(ladder, np.array([-11.0, -21.0])).tolist() == pytest.approx([0.3, 0.5])
    assert validity_at_likelihood(ladder, np.array([-9.5, -30.0])).tolist() == pytest.approx([0.15, 1.0])


def test_a_page_of_a_tiny_panel(tmp_path, monkeypatch):
    """Tables and findings of three methods, from runs on two seeds."""
    methods = {"All": [Method("SFT ×1", "sft"), rft(2), iris(2)]}
    jobs = [Job(method, TINY, ((1e-2, 3.0), (3e-2, 10.0))) for method in methods["All"]]
    explored = [_computed(job, tmp_path) for job in jobs]
    confirmed = [_computed(job, tmp_path) for job in confirming(explored)]
    monkeypatch.setattr(report, "groups", lambda regime: methods)
    monkeypatch.setattr(report, "FINDINGS", tmp_path / "findings.md")
    (tmp_path / "findings.md").write_text("IRIS-V: {validity[tiny / 4 / IRIS-V n=2 / SFT]} to SFT.")
    panel = report.Panel(TINY, explored, confirmed)
    report.write_report([panel], tmp_path)
    page = (tmp_path / "README.md").read_text()
    ours, theirs = (panel.model(name, 4.0).at("validity") for name in ("IRIS-V n=2", "SFT"))
    assert f"IRIS-V: {signed(Interval.of(ours - theirs))} to SFT." in page
    assert page.count("| RFT n=2 |") == 3
    assert len(ours) == CONFIRMING_SEEDS


def _computed(job, folder):
    compute(job, folder)
    return load(job, folder)


@pytest.mark.parametrize("regime", [H8, COMP], ids=lambda regime: regime.name)
def test_methods_have_unique_names_and_a_counterpart(regime):
    methods = [job.method for job in exploring(regime)]
    names = [method.name for method in methods]
    assert len(set(names)) == len(names)
    assert {counterpart(method) for method in methods if method.verified} <= set(names)
    assert len(groups(regime)["Supervised fine-tuning"]) == len(STEP_BUDGETS) == 3


def test_findings_name_methods_of_the_panel():
    keys = re.findall(r"\{\w+\[([^\]]+)\]\}", report.FINDINGS.read_text(encoding="utf-8"))
    named = {tuple(key.split(" / ")) for key in keys}
    known = {regime.name: {"SFT", *(job.method.name for job in exploring(regime))} for regime in (H8, COMP)}
    assert len(named) > 40
    for regime, budget, ours, theirs in named:
        assert {ours, theirs} <= known[regime], (regime, ours, theirs)
        assert budget in ("–", "1", "4")
