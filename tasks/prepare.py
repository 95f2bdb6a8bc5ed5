"""The stage `prepare` as a task: resolve the model, check and split the annotated pairs."""

from __future__ import annotations

from iris_core.config import Experiment
from iris_core.pipeline.plan import prepare_spec
from tasks.stage import Result, perform, stage_task


@stage_task("prepare")
def prepare(experiment: Experiment) -> Result:
    """Checks the inputs, before any stage that costs time."""
    return perform(prepare_spec(experiment), experiment, "prepare")
