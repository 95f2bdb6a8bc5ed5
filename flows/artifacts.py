"""What a flow run shows in the Prefect UI: the iteration table, one iteration's numbers, the report."""

from __future__ import annotations

import re
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from iris_core.store import Store
from iris_core.summary import Row, cells, headers, markdown, place_name, rows, samples, warnings
from tasks.stage import artifact_key, place_of


def show_row(store: Store, row: Row) -> None:
    """One row of the table as a table artifact."""
    where = "initial-model" if row.iteration is None else f"iteration-{row.iteration}"
    create_table_artifact(
        quantities(store, row),
        key=artifact_key(store.home.name, where),
        description=where.replace("-", " "),
    )


def show_table(store: Store) -> None:
    """The table of all iterations so far as a Markdown artifact; the latest version is the current one."""
    key = artifact_key(store.home.name, "iterations")
    create_markdown_artifact(table(store), key=key, description="iterations")


def show_report(store: Store, report: Path, link: str | None) -> None:
    """The table, some answers before and after, and where the whole report lies, as a Markdown artifact.

    Args:
        store: whose report it is.
        report: the file in the store.
        link: where MLflow shows the same; None: nowhere.
    """
    parts = [table(store), "## Before and after"]
    for sample in samples(store):
        parts += [
            f"**{_inline(sample.prompt)}**",
            f"- annotated: {_inline(sample.annotated)}\n- before: {_inline(sample.before)}\n"
            f"- after: {_inline(sample.after)}",
        ]
    shown = f", [in MLflow]({link})" if link else ", and a file of the experiment's run in MLflow"
    parts.append(f"The whole report, with plots: `{report}`{shown}")
    key = artifact_key(store.home.name, "report")
    create_markdown_artifact("\n\n".join(parts), key=key, description="report")


def quantities(store: Store, row: Row) -> list[dict[str, str]]:
    """One row of the table, each benchmark's score and each warning of its stages."""
    shown = list(zip(headers([row]), cells(row), strict=True))
    shown += [(name, f"{100 * score:.1f}") for name, score in row.benchmarks.items()]
    stages = f"{place_of(row.iteration)}/"
    shown += [("warning", text) for place, text in warnings(store) if place.startswith(stages)]
    return [{"quantity": name, "value": value} for name, value in shown if value]


def table(store: Store) -> str:
    """The iterations so far and the warnings of their stages, in Markdown."""
    return "\n\n".join([f"# {store.home.name}", markdown(rows(store)), *_warnings(store)])


def _warnings(store: Store) -> list[str]:
    """The warnings of all stages as a list with its title; nothing where there are none."""
    lines = [f"- {place_name(place)}: {_inline(text)}" for place, text in warnings(store)]
    return ["## Warnings", "\n".join(lines)] if lines else []


def _inline(text: str) -> str:
    """`text` on one line, without a meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", " ⏎ ".join(text.split("\n")))
