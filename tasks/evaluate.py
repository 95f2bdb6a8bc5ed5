"""The stage `evaluate` as a task: the benchmarks, and exact match on held-out prompts."""

from __future__ import annotations

from iris_core.config import Experiment
from iris_core.evaluation.folder import benchmark_folder
from iris_core.pipeline.plan import Prepared, evaluate_spec
from iris_core.store import Policy
from iris_core.store.places import place_of
from tasks.stage import Result, perform, stage_task


@stage_task("evaluate", gpu=True)
def evaluate(experiment: Experiment, prepared: Prepared, policy: Policy, iteration: int | None) -> Result:
    """Scores the policy that `iteration` has trained, or the initial one (None)."""
    data = benchmark_folder(experiment.evaluation.data_dir)
    spec = evaluate_spec(experiment, prepared, policy, data)
    return perform(spec, experiment, place_of(iteration, spec.stage))
