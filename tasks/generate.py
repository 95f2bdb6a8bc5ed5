"""The stage `generate` as a task: the opponent answers every prompt."""

from __future__ import annotations

from iris_core.config import Experiment
from iris_core.pipeline.plan import LoopState, Prepared, generate_spec
from iris_core.store.places import place_of
from tasks.stage import Result, perform, stage_task


@stage_task("generate", gpu=True)
def generate(experiment: Experiment, prepared: Prepared, state: LoopState) -> Result:
    """Samples the synthetic responses of one iteration."""
    spec = generate_spec(experiment, prepared, state)
    return perform(spec, experiment, place_of(state.iteration, spec.stage))
