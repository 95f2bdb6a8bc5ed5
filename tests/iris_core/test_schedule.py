"""The order's rules, by numbers."""

import json

import pytest

from iris_core.config import SchedulePart
from iris_core.schedule import next_order, schedule
from iris_core.specs import Gap, ScheduleSpec
from iris_core.store import run_stage

pytestmark = pytest.mark.unit


def gaps(*values, width=0.1):
    return [Gap(value=value, low=value - width, high=value + width) for value in values]


def test_adaptive_follows_the_gap():
    """α_max 2, α_min 1, D̂ at a quarter of its first: 1 + 1·¼ = 1.25."""
    rule = SchedulePart()
    assert next_order(rule, 0, 3, 2.0, gaps(0.8))[0] == 2.0
    assert next_order(rule, 1, 3, 2.0, gaps(0.8, 0.2))[0] == pytest.approx(1.25)
    order, reason = next_order(rule, 1, 3, 2.0, gaps(0.8, -0.2))
    assert order == 1.0
    assert "training gained nothing on held-out pairs" in reason


def test_adaptive_rises_only_if_allowed():
    history = gaps(0.8, 0.2, 0.6)
    order, reason = next_order(SchedulePart(), 2, 5, 1.25, history)
    assert order == 1.25
    assert "does not rise" in reason
    assert next_order(SchedulePart(allow_rising=True), 2, 5, 1.25, history)[0] == pytest.approx(
        1.75
    )


def test_linear_cosine_and_constant():
    orders = [next_order(SchedulePart(kind="linear"), t, 5, 2.0, gaps(1.0))[0] for t in range(4)]
    assert orders == pytest.approx([1.75, 1.5, 1.25, 1.0])
    assert next_order(SchedulePart(kind="cosine"), 1, 5, 2.0, gaps(1.0))[0] == pytest.approx(1.5)
    assert next_order(SchedulePart(kind="constant"), 3, 5, 2.0, gaps(1.0))[0] == 2.0


def test_stage_stops_when_the_interval_contains_zero_and_it_was_asked_to(tmp_path):
    for stop in (True, False):
        spec = ScheduleSpec(
            schedule=SchedulePart(stop_when_converged=stop),
            iteration=1,
            iterations=3,
            order=2.0,
            gaps=gaps(0.5, 0.05),
        )
        manifest = run_stage(spec, tmp_path / str(stop), schedule)
        assert manifest.metrics["converged"] is True
        assert manifest.metrics["stop"] is stop
        assert json.loads(manifest.artifact("schedule").path.read_text())[
            "next_order"
        ] == pytest.approx(1.1)
