"""Loops side by side, each of an objective and a seed, then one table.

prefect deployment run iris-compare/objectives --watch
iris run mine.yaml --with-sft
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.checks import check_services
from flows.iris import iris
from iris_core.common.markup import markdown
from iris_core.config import Experiment
from iris_core.config.objective import MemberName
from iris_core.pipeline.members import members, with_sft
from iris_core.pipeline.metrics import CompareMetrics
from iris_core.store.places import COMPARISON
from iris_core.tracking.model_name import check_registered_model
from tasks.compare import compare as compare_stage
from tasks.stage import Finished, artifact_key

SEEDS = [0, 1, 2]
EACH_ONCE = Field(json_schema_extra={"minItems": 1, "uniqueItems": True})  # Prefect refuses other lists by the schema


@flow(name="iris-compare", flow_run_name="{experiment.name}")
def compare(
    experiment: Experiment,
    objectives: Annotated[list[MemberName], EACH_ONCE] | None = None,
    seeds: Annotated[list[int], EACH_ONCE] = SEEDS,
) -> Path:
    """Runs the loop for every objective and seed, and gives one table, plots, and the differences by prompt.

    The loops share a store, so that stages with equal inputs run once, such as the sampling of iteration 0. All are
    measured on the same held-out prompts: those that the experiment itself would hold out.

    Args:
        experiment: model, data and settings of all loops; `objective.name` and `seed` are set for each.
        objectives: to compare, each with its default reward scale; the experiment's own, with or without verdicts as
            there, keeps that of the recipe. They learn without verdicts but for `rft` and `verified`, which is iris
            with them; these need a verifier. Left out: all but `hinge`, and those two only where there is a verifier.
        seeds: of the loops of every objective.

    Returns:
        The page with table and plot.
    """
    return _compared(experiment, members(experiment, objectives, seeds))


@flow(name="iris-with-sft", flow_run_name="{experiment.name} with SFT")
def compare_with_sft(experiment: Experiment) -> Path:
    """Runs the loop, then supervised fine-tuning on the same pairs, and compares them.

    Args:
        experiment: the loop; the baseline has its settings but for `objective.name`.

    Returns:
        The page with table and plots.
    """
    return _compared(experiment, with_sft(experiment))


def _compared(experiment: Experiment, loops: list[Experiment]) -> Path:
    store = check_services(experiment)
    for loop in loops:  # before the first one trains
        check_registered_model(loop.tracking_uri, loop.registered_model)
    for loop in loops:
        iris(loop)
    compared = compare_stage(experiment, loops)
    page = compared.manifest().artifact("page").path
    create_markdown_artifact(
        _text(experiment, compared, page), key=artifact_key(store.home.name, COMPARISON), description="comparison"
    )
    return page


def _text(experiment: Experiment, compared: Finished, page: Path) -> str:
    """The table, and where the page is, in Markdown."""
    table = CompareMetrics.of(compared).table
    return f"# {markdown(experiment.name)}\n\n{table}\n\nThe page, with the plot: {markdown(str(page))}"
