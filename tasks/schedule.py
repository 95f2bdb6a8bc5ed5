"""The stage `schedule` as a task: the next order α from the measured gaps."""

from __future__ import annotations

from iris_core.config import Experiment
from iris_core.pipeline.plan import LoopState, schedule_spec
from iris_core.store.places import place_of
from tasks.stage import Finished, Result, perform, stage_task


@stage_task("schedule")
def schedule(experiment: Experiment, state: LoopState, trained: Finished) -> Result:
    """Sets the order of the next iteration."""
    spec = schedule_spec(experiment, state, trained.manifest())
    return perform(spec, experiment, place_of(state.iteration, spec.stage))
