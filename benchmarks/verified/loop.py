"""The loop of an experiment by its own stages, without Prefect and MLflow; what is in the store is reused."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from iris_core.config import Experiment
from iris_core.execution.launch import launch
from iris_core.pipeline import plan
from iris_core.pipeline.metrics import TrainMetrics
from iris_core.pipeline.plan import Prepared
from iris_core.store import Manifest, Policy, Spec, Store, completed


class Trained(NamedTuple):
    """A policy after an iteration, and how many optimizer steps that took."""

    policy: Policy
    steps: int


def perform(experiment: Experiment, spec: Spec) -> Manifest:
    """A stage's output from the store, or by its own process."""
    folder = Store.of(experiment).folder(spec)
    found = completed(folder, spec)
    print(f"{experiment.name}: {spec.stage}{' (reused)' if found else ''}", flush=True)
    return found or launch(spec, folder)


def prepare(experiment: Experiment) -> Prepared:
    """The experiment's checked inputs."""
    return Prepared.of(perform(experiment, plan.prepare_spec(experiment)))


def iterations(experiment: Experiment, prepared: Prepared) -> list[Trained]:
    """The policy after each iteration."""
    state, found = prepared.start(experiment), list[Trained]()
    while state.iteration < experiment.iterations:
        generated = perform(experiment, plan.generate_spec(experiment, prepared, state))
        trained = perform(experiment, plan.train_spec(experiment, prepared, state, generated))
        scheduled = perform(experiment, plan.schedule_spec(experiment, state, trained))
        state = plan.next_state(state, generated, trained, scheduled)
        found.append(Trained(state.policy, TrainMetrics.of(trained).train.steps))
    return found


def answers(experiment: Experiment, prepared: Prepared, policy: Policy) -> Path:
    """The greedy answers of `policy` to the held-out prompts, judged: a Parquet file."""
    spec = plan.evaluate_spec(experiment, prepared, policy, None)
    return perform(experiment, spec).artifact("heldout").path


def samples(experiment: Experiment, prepared: Prepared, policy: Policy) -> Path:
    """The verdicts on one sampled answer of `policy` to each held-out prompt: a folder of Parquet files.

    `prepared` should have held-out pairs alone: each prompt of its pairs is answered.
    """
    state = prepared.start(experiment).model_copy(update={"policy": policy})
    return perform(experiment, plan.generate_spec(experiment, prepared, state)).artifact("verdicts").path
