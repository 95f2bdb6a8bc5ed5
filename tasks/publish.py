"""The stage `publish` as a task: the report in MLflow."""

from __future__ import annotations

from pathlib import Path

from iris_core.config import Experiment
from iris_core.pipeline.metrics import RegisterMetrics
from iris_core.pipeline.plan import publish_spec
from tasks.stage import Finished, Result, perform, stage_task


@stage_task("publish")
def publish(experiment: Experiment, iteration: int, registered: Finished, report: Path) -> Result:
    """Uploads `report` and its data to the parent run of what was registered; `iteration` names the task run."""
    spec = publish_spec(experiment, RegisterMetrics.of(registered).parent_run_id, report)
    return perform(spec, experiment, "publish")
