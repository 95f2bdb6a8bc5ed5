"""The list of stages: their order, their places, and a module for each."""

import pytest

from iris_core.pipeline.stages import loop_places

pytestmark = pytest.mark.unit


def test_places_of_a_loop_in_the_order_of_its_stages():
    assert loop_places([0]) == [
        "prepare",
        "initial/evaluate",
        "initial/register",
        "iteration-0/generate",
        "iteration-0/train",
        "iteration-0/evaluate",
        "iteration-0/schedule",
        "iteration-0/register",
    ]
