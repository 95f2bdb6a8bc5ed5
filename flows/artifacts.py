"""What a flow run shows in the Prefect UI: the plan, the table of iterations, one iteration's numbers, the report."""

from __future__ import annotations

from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from iris_core.common import markup
from iris_core.common.redaction import redact
from iris_core.pipeline.metrics import GenerateMetrics
from iris_core.reporting import resources
from iris_core.reporting.resources import Resources
from iris_core.reporting.summary import (
    Row,
    cells,
    headers,
    markdown,
    place_name,
    rows,
    samples,
    warnings,
)
from iris_core.store import Store
from iris_core.store.places import iteration_name
from tasks.stage import artifact_key

WARNING = "warning"
SHARES = {
    "right": "right responses, %",
    "wrong": "wrong responses, %",
    "undecided": "undecided responses, %",
    "mixed": "prompts with right and wrong responses, %",
}


def show_plan(store: Store, needs: Resources) -> None:
    """`plan_text` as a Markdown artifact."""
    key = artifact_key(store.home.name, "plan")
    create_markdown_artifact(plan_text(store.home.name, needs), key=key, description="plan")


def show_row(store: Store, row: Row) -> None:
    """One row of the table as a table artifact."""
    where = "initial-model" if row.iteration is None else iteration_name(row.iteration)
    create_table_artifact(
        [_without_markup(cell) for cell in quantities(store, row)],
        key=artifact_key(store.home.name, where),
        description=where.replace("-", " "),
    )


def show_table(store: Store) -> None:
    """The table of all iterations so far as a Markdown artifact; the latest version is the current one."""
    key = artifact_key(store.home.name, "iterations")
    create_markdown_artifact(table(store), key=key, description="iterations")


def show_report(store: Store, report: Path, link: str | None) -> None:
    """`report_text` as a Markdown artifact."""
    key = artifact_key(store.home.name, "report")
    create_markdown_artifact(report_text(store, report, link), key=key, description="report")


def plan_text(name: str, needs: Resources) -> str:
    """What a run needs of its machine, as a table in Markdown with what it assumes."""
    title = f"# {markup.markdown(name)}\n\nWhat the run needs of {markup.markdown(str(needs.machine))}:"
    table = markup.table(["part", "needed"], resources.rows(needs))
    return "\n\n".join([title, table, *needs.assumptions])


def report_text(store: Store, report: Path, link: str | None) -> str:
    """The table, some answers before and after, and where the whole report lies, in Markdown.

    Args:
        store: the experiment's.
        report: the file in the store.
        link: the page of MLflow with the report; None without a server.
    """
    parts = [table(store), "## Before and after"]
    for sample in samples(store):
        parts += [
            f"**{markup.markdown(sample.prompt)}**",
            f"- annotated: {markup.markdown(sample.annotated)}\n- before: {markup.markdown(sample.before)}\n"
            f"- after: {markup.markdown(sample.after)}",
        ]
    shown = f"[in MLflow]({link})" if link else "a file of the experiment's run in MLflow"
    parts.append(f"The whole report, with plots: {markup.markdown(str(report))}, and {shown}")
    return "\n\n".join(parts)


def quantities(store: Store, row: Row) -> list[dict[str, str]]:
    """One row of the table, each benchmark's score and each warning of its stages."""
    shown = list(zip(headers([row]), cells(row), strict=True))
    shown += [(name, f"{100 * score:.1f}") for name, score in row.benchmarks.items()]
    stages = f"{iteration_name(row.iteration)}/"
    if generated := store.manifest(f"{stages}generate"):
        shares = GenerateMetrics.of(generated).shares
        shown += [(SHARES[name], f"{100 * share:.1f}") for name, share in shares.items()]
    shown += [(WARNING, redact(text)) for place, text in warnings(store) if place.startswith(stages)]
    return [{"quantity": name, "value": value} for name, value in shown if value]


def table(store: Store) -> str:
    """The iterations so far and the warnings of their stages, in Markdown."""
    title = f"# {markup.markdown(store.home.name)}"
    return "\n\n".join([title, markdown(rows(store)), *_warnings(store)])


def _without_markup(cell: dict[str, str]) -> dict[str, str]:
    """A quantity for Prefect's table, which reads cells as Markdown; only warnings quote text of others."""
    if cell["quantity"] != WARNING:
        return cell
    return {**cell, "value": markup.markdown(cell["value"])}


def _warnings(store: Store) -> list[str]:
    """The warnings of all stages as a list with its title; nothing where there are none."""
    lines = [f"- {place_name(place)}: {markup.markdown(redact(text))}" for place, text in warnings(store)]
    return ["## Warnings", "\n".join(lines)] if lines else []
