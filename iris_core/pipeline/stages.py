"""The one list of stages: their names, their order in the loop, and the places of their output.

A new stage is a spec in `iris_core.pipeline.specs` and a name here; reports, flows and tests follow.
"""

from __future__ import annotations

from collections.abc import Iterable

from iris_core.pipeline.specs import (
    CompareSpec,
    EvaluateSpec,
    GenerateSpec,
    PrepareSpec,
    PublishSpec,
    RegisterSpec,
    ScheduleSpec,
    TrainSpec,
)
from iris_core.store.places import place_of

OF_INITIAL_MODEL = (EvaluateSpec.stage, RegisterSpec.stage)
OF_ITERATION = (GenerateSpec.stage, TrainSpec.stage, EvaluateSpec.stage, ScheduleSpec.stage, RegisterSpec.stage)
OF_LOOP = (PrepareSpec.stage, *OF_ITERATION)
STAGES = (*OF_LOOP, PublishSpec.stage, CompareSpec.stage)


def loop_places(iterations: Iterable[int]) -> list[str]:
    """The places of the loop in the order its stages run: of `prepare`, of the initial model, of `iterations`."""
    before = [PrepareSpec.stage, *(place_of(None, stage) for stage in OF_INITIAL_MODEL)]
    return before + [place_of(iteration, stage) for iteration in iterations for stage in OF_ITERATION]
