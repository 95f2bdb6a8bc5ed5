"""The Prefect flow `iris-compare`: the loop once for each objective and seed, then one table.

prefect deployment run iris-compare/objectives --watch
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.checks import check_services
from flows.iris import iris
from iris_core.common.markup import markdown
from iris_core.config import Experiment
from iris_core.config.objective import MemberName
from iris_core.pipeline.metrics import CompareMetrics
from iris_core.pipeline.plan import compared_by_default, member
from tasks.compare import compare as compare_stage
from tasks.stage import Finished, artifact_key

SEEDS = [0, 1, 2]


@flow(name="iris-compare", flow_run_name="{experiment.name}")
def compare(experiment: Experiment, objectives: list[MemberName] | None = None, seeds: list[int] = SEEDS) -> Path:
    """Runs the loop for every objective and seed, and gives one table, plots, and the differences by prompt.

    The loops share a store, so that stages with equal inputs run once, such as the sampling of iteration 0.

    Args:
        experiment: model, data and settings of all loops; `objective.name` and `seed` are set for each.
        objectives: to compare, each with its published reward scale; the experiment's own keeps that of the recipe.
            They learn without verdicts but for `rft` and `verified`, which is iris with them; these need a verifier.
            Left out: all but `hinge`, and those two only where there is a verifier.
        seeds: of the loops of every objective.

    Returns:
        The page with table and plot.
    """
    store = check_services(experiment)
    names = compared_by_default(experiment) if objectives is None else objectives
    members = [member(experiment, name, seed) for seed in seeds for name in names]
    for loop in members:
        iris(loop)
    compared = compare_stage(experiment, members)
    page = compared.manifest().artifact("page").path
    create_markdown_artifact(
        _text(experiment, compared, page), key=artifact_key(store.home.name, "comparison"), description="comparison"
    )
    return page


def _text(experiment: Experiment, compared: Finished, page: Path) -> str:
    """The table, and where the page is, in Markdown."""
    table = CompareMetrics.of(compared).table
    return f"# {markdown(experiment.name)}\n\n{table}\n\nThe page, with the plot: {markdown(str(page))}"
