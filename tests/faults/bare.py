"""The loop without Prefect: the same stages in the same order, each launched as a task would launch it.

    python -m tests.faults.bare recipe.yaml

It takes a fraction of the time of `iris run`, so most faults strike here.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from flows.checks import check_services, claimed
from iris_core.common.errors import IrisError
from iris_core.config import Experiment
from iris_core.config.recipe import load_recipe
from iris_core.evaluation.folder import benchmark_folder
from iris_core.execution.launch import launch
from iris_core.pipeline import plan
from iris_core.pipeline.metrics import RegisterMetrics
from iris_core.pipeline.plan import LoopState, Prepared
from iris_core.reporting.page import write_report
from iris_core.store import Manifest, Spec, Store, completed
from iris_core.store.places import place_of


def run(experiment: Experiment) -> None:
    """Runs the loop, or the rest of it."""
    store = check_services(experiment)
    checked = perform(store, "prepare", plan.prepare_spec(experiment))
    prepared = Prepared.of(checked)
    with claimed(store, experiment, prepared):
        loop(experiment, store, checked, prepared)


def loop(experiment: Experiment, store: Store, checked: Manifest, prepared: Prepared) -> None:
    """Scores and registers the initial model, and iterates."""
    policy = prepared.initial
    scored = perform(
        store,
        place_of(None, "evaluate"),
        plan.evaluate_spec(experiment, prepared, policy, benchmark_folder(experiment.evaluation.data_dir)),
    )
    stages = {"prepare": checked, "evaluate": scored}
    register = plan.register_spec(experiment, prepared, None, policy, stages)
    perform(store, place_of(None, "register"), register)
    state = prepared.start(experiment)
    while state.iteration < experiment.iterations:
        state = iteration(experiment, store, prepared, state)


def iteration(experiment: Experiment, store: Store, prepared: Prepared, state: LoopState) -> LoopState:
    """Runs one iteration: from policy p_t to p_{t+1}."""
    stages: dict[str, Manifest] = {}

    def stage(spec: Spec) -> Manifest:
        place = place_of(state.iteration, spec.stage)
        stages[spec.stage] = perform(store, place, spec)
        return stages[spec.stage]

    generated = stage(plan.generate_spec(experiment, prepared, state))
    trained = stage(plan.train_spec(experiment, prepared, state, generated))
    policy = plan.trained_policy(state.policy, trained)
    stage(plan.evaluate_spec(experiment, prepared, policy, benchmark_folder(experiment.evaluation.data_dir)))
    scheduled = stage(plan.schedule_spec(experiment, state, trained))
    stage(plan.register_spec(experiment, prepared, state.iteration, policy, dict(stages)))
    parent = RegisterMetrics.of(stages["register"]).parent_run_id
    perform(store, "publish", plan.publish_spec(experiment, parent, write_report(store)))
    return plan.next_state(state, generated, trained, scheduled)


def perform(store: Store, place: str, spec: Spec) -> Manifest:
    """Takes a stage's output from the store, or launches the stage."""
    folder = store.folder(spec)
    manifest = completed(folder, spec) or launch(spec, folder)
    store.link(place, folder)
    return manifest


def main() -> None:
    """Runs the recipe; an error is one line and exit code 2, as in `iris run`."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run(load_recipe(Path(sys.argv[1])))
    except IrisError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
