"""The stage `train` as a task: the policy learns to tell annotated from synthetic responses."""

from __future__ import annotations

from iris_core.config import Experiment
from iris_core.pipeline.plan import LoopState, Prepared, train_spec
from iris_core.store.places import place_of
from tasks.stage import Finished, Result, perform, stage_task


@stage_task("train", gpu=True)
def train(experiment: Experiment, prepared: Prepared, state: LoopState, generated: Finished) -> Result:
    """Fine-tunes the policy of one iteration; out of memory, it tries again with half the micro-batch."""
    spec = train_spec(experiment, prepared, state, generated.manifest())
    return perform(spec, experiment, place_of(state.iteration, spec.stage))
