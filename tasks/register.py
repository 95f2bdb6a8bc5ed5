"""The stage `register` as a task: MLflow's record of an iteration, and its model version."""

from __future__ import annotations

from iris_core.config import Experiment
from iris_core.pipeline.plan import Prepared, register_spec
from iris_core.store import Policy
from iris_core.store.places import place_of
from tasks.stage import Finished, Result, perform, stage_task


@stage_task("register")
def register(
    experiment: Experiment,
    prepared: Prepared,
    iteration: int | None,
    policy: Policy,
    stages: dict[str, Finished],
) -> Result:
    """Logs one iteration to MLflow (None: the initial model) and registers its model."""
    manifests = {name: finished.manifest() for name, finished in stages.items()}
    spec = register_spec(experiment, prepared, iteration, policy, manifests)
    return perform(spec, experiment, place_of(iteration, spec.stage))
