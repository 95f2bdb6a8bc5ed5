"""One iteration: generate, train, evaluate, schedule, register."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.serializers import JSONSerializer

from flows.artifacts import show_report, show_row, show_table
from iris_core.config import Experiment
from iris_core.pipeline.metrics import PublishMetrics
from iris_core.pipeline.plan import LoopState, Prepared, next_state, trained_policy
from iris_core.reporting.summary import rows
from iris_core.store import Store
from tasks.evaluate import evaluate
from tasks.generate import generate
from tasks.publish import publish
from tasks.register import register
from tasks.schedule import schedule
from tasks.stage import Finished
from tasks.train import train


@flow(
    name="iris-iteration",
    flow_run_name="{experiment.name} · iteration {state.iteration}",
    persist_result=True,
    result_serializer=JSONSerializer(),
)
def iteration(experiment: Experiment, prepared: Prepared, state: LoopState) -> LoopState:
    """Turns p_t into p_{t+1}.

    Args:
        experiment: the settings.
        prepared: the checked inputs.
        state: where the loop stands before this iteration.

    Returns:
        Where it stands after.
    """
    t = state.iteration
    generated = generate(experiment, prepared, state)
    trained = train(experiment, prepared, state, generated)
    policy = trained_policy(state.policy, trained.manifest())
    evaluated = evaluate(experiment, prepared, policy, t)
    scheduled = schedule(experiment, state, trained)
    stages = {each.stage: each for each in (generated, trained, evaluated, scheduled)}
    registered = register(experiment, prepared, t, policy, stages)
    store = Store.of(experiment)
    show_table(store)
    show_row(store, next(row for row in rows(store) if row.iteration == t))
    report(experiment, store, t, registered)
    return next_state(state, generated.manifest(), trained.manifest(), scheduled.manifest())


def report(experiment: Experiment, store: Store, iteration: int, registered: Finished) -> Path:
    """Writes the report of the loop so far, keeps it in MLflow too, and shows it in the Prefect UI."""
    from iris_core.reporting.page import write_report  # imports matplotlib

    path = write_report(store)
    published = publish(experiment, iteration, registered, path)
    show_report(store, path, PublishMetrics.of(published).link)
    return path
