"""The self-play loop as the Prefect flow `iris`.

    iris run deployments/recipes/demo.yaml
    prefect deployment run iris/full-loop --watch

It prepares the inputs, plans the memory, scores the initial model, iterates and reports.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger

from flows.artifacts import show_plan, show_row, show_table
from flows.checks import check_services, claimed
from flows.iteration import iteration, report
from iris_core.config import Experiment
from iris_core.pipeline.metrics import PrepareMetrics
from iris_core.pipeline.plan import Prepared
from iris_core.reporting.machine import Machine, machine_of
from iris_core.reporting.resources import Resources, resources
from iris_core.reporting.summary import rows
from iris_core.store import Store
from tasks.evaluate import evaluate
from tasks.prepare import prepare
from tasks.register import register
from tasks.stage import Finished


@flow(name="iris", flow_run_name="{experiment.name}")
def iris(experiment: Experiment) -> Path:
    """Trains a supervised fine-tuned model further by self-play, iteration after iteration.

    Stages that an earlier run has finished are reused, so that running again resumes.

    Args:
        experiment: model, data, and every setting of the loop.

    Returns:
        The report.
    """
    store = check_services(experiment)
    checked = prepare(experiment)
    prepared = Prepared.of(checked.manifest())
    with claimed(store, experiment, prepared):
        _plan(experiment, prepared, checked, store)
        registered = _register_initial(experiment, prepared, checked, store)
        state = prepared.start(experiment)
        while state.iteration < experiment.iterations and not state.converged:
            state = iteration(experiment, prepared, state)
        if state.converged:
            get_run_logger().info("converged after iteration %d: the loop stops", state.iteration - 1)
        return report(experiment, store, state.iteration - 1, registered)


def _plan(experiment: Experiment, prepared: Prepared, checked: Finished, store: Store) -> None:
    """Shows what the run needs of its machine, and refuses it where its training does not fit."""
    found = PrepareMetrics.of(checked)
    if found.sizes is None:  # of an earlier version of IRIS
        return
    machine = machine_of(experiment.execution)
    needs = needs_of(experiment, prepared, found, machine)
    show_plan(store, needs)
    needs.check()


def needs_of(experiment: Experiment, prepared: Prepared, found: PrepareMetrics, machine: Machine) -> Resources:
    """What the run needs of `machine`, with the rows, the dtype, the model's sizes and the counts of `prepare`.

    Raises:
        ConfigError: `training.sharding` asks for what these rows do not allow.
    """
    assert found.sizes is not None
    training = experiment.training.model_copy(update={"packing": prepared.packing})
    known = experiment.model_copy(update={"training": training})
    return resources(known, found.sizes, machine, prepared.dtype, found.train_pairs, found.prompts)


def _register_initial(experiment: Experiment, prepared: Prepared, checked: Finished, store: Store) -> Finished:
    """The initial model, scored unless the experiment asks not to, is the first version and champion."""
    stages = {"prepare": checked}
    if experiment.evaluation.initial:
        stages["evaluate"] = evaluate(experiment, prepared, prepared.initial, None)
        show_table(store)
        show_row(store, rows(store)[0])
    return register(experiment, prepared, None, prepared.initial, stages)
