"""Evaluation alone: the model of a recipe on the benchmarks, without any training."""

from __future__ import annotations

from prefect import flow

from flows.artifacts import show_row
from flows.checks import check_services
from iris_core.config import Experiment
from iris_core.pipeline.metrics import EvaluateMetrics
from iris_core.pipeline.plan import Prepared
from iris_core.reporting.summary import rows
from tasks.evaluate import evaluate
from tasks.prepare import prepare


@flow(name="iris-evaluate", flow_run_name="{experiment.name}")
def evaluation(experiment: Experiment) -> EvaluateMetrics:
    """Scores the experiment's initial model. A later run of the loop reuses the scores.

    Args:
        experiment: model, data and evaluation settings; the others are not used.

    Returns:
        The metrics: average, and each benchmark's score.
    """
    store = check_services(experiment)
    prepared = Prepared.of(prepare(experiment).manifest())
    evaluated = evaluate(experiment, prepared, prepared.initial, None)
    show_row(store, rows(store)[0])
    return EvaluateMetrics.of(evaluated)
