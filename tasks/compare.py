"""The stage `compare` as a task: the loops of several objectives and seeds side by side."""

from __future__ import annotations

from iris_core.config import Experiment
from iris_core.pipeline.members import compare_spec
from iris_core.store.places import COMPARISON
from tasks.stage import Result, perform, stage_task


@stage_task("compare")
def compare(experiment: Experiment, members: list[Experiment]) -> Result:
    """Compares the finished loops of `members` and logs that to MLflow."""
    return perform(compare_spec(experiment, members), experiment, COMPARISON)
