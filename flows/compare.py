"""Objectives compared as the Prefect flow `iris-compare`: the loop once for each objective and seed, then one table.

prefect deployment run iris-compare/objectives --watch
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.checks import check_services
from flows.iris import iris
from iris_core.common.markup import markdown
from iris_core.config import Experiment, ObjectiveName
from iris_core.config.objective import COMPARED
from iris_core.pipeline.plan import member
from tasks.compare import compare as compare_stage
from tasks.stage import artifact_key

SEEDS = [0, 1, 2]


@flow(name="iris-compare", flow_run_name="{experiment.name}")
def compare(experiment: Experiment, objectives: list[ObjectiveName] = COMPARED, seeds: list[int] = SEEDS) -> Path:
    """Runs the loop for every objective and seed, and gives one table and one plot.

    Loops share a store, so that work with equal inputs, such as the first iteration's responses, is done once.

    Args:
        experiment: model, data and settings of all loops; `objective.name` and `seed` are set for each.
        objectives: which objectives, each with its published reward scale unless it is the experiment's own.
        seeds: one loop of every objective with each.

    Returns:
        The page with table and plot.
    """
    store = check_services(experiment)
    members = [member(experiment, name, seed) for seed in seeds for name in objectives]
    for loop in members:
        iris(loop)
    compared = compare_stage(experiment, members)
    page = compared.manifest().artifact("page").path
    text = f"# {markdown(experiment.name)}\n\n{compared.metrics['table']}\n\nThe page, with the plot: {markdown(str(page))}"
    create_markdown_artifact(text, key=artifact_key(store.home.name, "comparison"), description="comparison")
    return page
