"""The order's rules, by numbers, and the verdict `converged` on simulated training."""

import json

import numpy as np
import pytest

from iris_core.common.intervals import Interval, mean
from iris_core.config import SchedulePart
from iris_core.objectives.gap import Gap
from iris_core.objectives.order import Movement, confirmed_gap, converged, next_order
from iris_core.pipeline.specs import ScheduleSpec
from iris_core.schedule import schedule
from iris_core.store import run_stage

pytestmark = pytest.mark.unit


def test_adaptive_follows_the_gap():
    """α_max 2, α_min 1, D̂ at a quarter of its largest: 1 + 1·¼ = 1.25."""
    rule = SchedulePart()
    assert next_order(rule, 0, 3, 2.0, [0.8])[0] == 2.0
    assert next_order(rule, 1, 3, 2.0, [0.8, 0.2])[0] == pytest.approx(1.25)
    order, reason = next_order(rule, 1, 3, 2.0, [0.8, 0.0])
    assert order == 1.0
    assert "0% of the largest" in reason


@pytest.mark.parametrize("first", [1e-4, -1e-4])
def test_a_first_gap_of_noise_decides_nothing(first):
    """Not confirmed, it counts as 0: the order stays until there is a gap, and then falls as that gap does."""
    noise = confirmed_gap(Gap(value=first, ess=64, pairs=64, confirmed=False))
    order, reason = next_order(SchedulePart(), 0, 4, 2.0, [noise])
    assert order == 2.0
    assert "no gap above noise so far" in reason
    assert next_order(SchedulePart(), 1, 4, 2.0, [noise, 0.8])[0] == 2.0
    assert next_order(SchedulePart(), 2, 4, 2.0, [noise, 0.8, 0.4])[0] == pytest.approx(1.5)


def test_a_small_first_gap_is_not_what_a_larger_one_is_measured_by():
    assert next_order(SchedulePart(), 2, 4, 2.0, [1e-4, 0.8, 0.4])[0] == pytest.approx(1.5)


def test_adaptive_rises_only_if_allowed():
    history = [0.8, 0.2, 0.6]
    order, reason = next_order(SchedulePart(), 2, 5, 1.25, history)
    assert order == 1.25
    assert "does not rise" in reason
    assert next_order(SchedulePart(allow_rising=True), 2, 5, 1.25, history)[0] == pytest.approx(1.75)


def test_linear_cosine_and_constant():
    orders = [next_order(SchedulePart(kind="linear"), t, 5, 2.0, [1.0])[0] for t in range(4)]
    assert orders == pytest.approx([1.75, 1.5, 1.25, 1.0])
    assert next_order(SchedulePart(kind="cosine"), 1, 5, 2.0, [1.0])[0] == pytest.approx(1.5)
    assert next_order(SchedulePart(kind="constant"), 3, 5, 2.0, [1.0])[0] == 2.0


OUTCOMES = 12
PAIRS = 64


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def trained(seed: int, gap: float, rate: float) -> Movement:
    """One iteration of IRIS (λ = 1, clip 1) in a world of 12 responses, measured as the stage `train` does.

    The logits of a prompt are the sum of the world's, of those that all prompts share, and of its own, which memorise
    its pair. If `gap` is 0, p_data is p_t. Log-probs are rounded as in fp32.
    """
    generator, eye, rows = np.random.default_rng(seed), np.eye(OUTCOMES), np.arange(PAIRS)
    opponent = log_softmax(generator.normal(size=OUTCOMES))
    data = log_softmax(opponent + gap * generator.normal(size=OUTCOMES))

    def drawn(logprobs):
        return generator.choice(OUTCOMES, size=PAIRS, p=np.exp(logprobs))

    annotated, held_annotated = drawn(data), drawn(data)
    synthetic, held_synthetic = drawn(opponent), drawn(opponent)
    shared, own = np.zeros(OUTCOMES), np.zeros((PAIRS, OUTCOMES))
    for _ in range(40):
        policy = log_softmax(opponent + shared + own)
        down = np.minimum(1, np.exp(policy[rows, synthetic] - opponent[synthetic]))[:, None]
        pull = 2 * (eye[annotated] - np.exp(policy)) - down * (eye[synthetic] - np.exp(policy))
        shared, own = shared + rate * pull.mean(0), own + rate / 2 * pull

    def margin(ratios, one, other):
        rounding = 1e-5 * generator.normal(size=PAIRS)
        return mean(ratios[rows, one] - ratios[rows, other] + rounding, seed=0)

    heldout = np.tile(log_softmax(opponent + shared) - opponent, (PAIRS, 1))
    return Movement(
        training_margin=margin(log_softmax(opponent + shared + own) - opponent, annotated, synthetic),
        heldout_margin=margin(heldout, held_annotated, held_synthetic),
    )


def share_converged(gap: float, rate: float, runs: int = 100) -> float:
    return sum(converged(trained(seed, gap, rate))[0] for seed in range(runs)) / runs


@pytest.mark.parametrize("gap", [0.0, 1.0])
@pytest.mark.parametrize("rate", [0.0, 1e-4, 1e-2])
def test_a_run_that_hardly_trained_never_counts_as_converged(gap, rate):
    assert share_converged(gap, rate) == 0


def test_a_run_that_trained_is_told_whether_a_gap_is_left():
    """At the fixed point the verdict is right as often as a 95 % interval is; a clear gap is rarely overlooked."""
    assert share_converged(0.0, 0.1) > 0.9
    assert share_converged(1.0, 0.1) < 0.15
    assert share_converged(2.0, 0.1) < 0.03


def around(value: float, width: float = 0.1) -> Interval:
    return Interval(value=value, low=value - width, high=value + width)


@pytest.mark.parametrize(
    ("training", "heldout", "expected", "finding"),
    [
        (3.0, 0.0, True, "pairs trained on gained 3 nats, held-out ones none above noise"),
        (3.0, 0.5, False, "held-out pairs gained 0.5 nats: there is more to learn"),
        (3.0, -0.5, False, "held-out pairs lost 0.5 nats"),
        (0.5, 0.0, False, "the pairs trained on gained only 0.5 nats"),
    ],
)
def test_the_verdict_and_its_reason(training, heldout, expected, finding):
    found, reason = converged(Movement(training_margin=around(training), heldout_margin=around(heldout)))
    assert found is expected
    assert reason.startswith(finding)


def test_without_a_training_margin_there_is_no_verdict():
    found, reason = converged(Movement(training_margin=None, heldout_margin=around(0.0)))
    assert not found
    assert reason.startswith("fewer than two pairs were trained on with their synthetic response")


def test_too_few_held_out_pairs_give_no_verdict():
    wide = Movement(training_margin=around(3.0), heldout_margin=around(1.0, width=5.0))
    assert converged(wide) == (
        False,
        "held-out pairs may have gained as much as those trained on: too few of them",
    )


@pytest.mark.parametrize("stop", [True, False])
def test_the_stage_stops_a_converged_loop_if_it_was_asked_to(tmp_path, stop):
    found = [Gap(value=value, ess=60, pairs=64, confirmed=True) for value in (0.5, 0.05)]
    spec = ScheduleSpec(
        schedule=SchedulePart(stop_when_converged=stop),
        iteration=1,
        iterations=3,
        order=2.0,
        gaps=found,
        movement=Movement(training_margin=around(3.0), heldout_margin=around(0.0)),
    )
    manifest = run_stage(spec, tmp_path / "schedule", schedule)
    assert manifest.metrics["converged"] is True
    assert manifest.metrics["stop"] is stop
    kept = json.loads(manifest.artifact("schedule").path.read_text())
    assert kept["next_order"] == pytest.approx(1.1)
