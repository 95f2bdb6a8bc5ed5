"""What a flow run shows in the Prefect UI: the iteration table, one iteration's numbers, the report."""

from __future__ import annotations

from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from iris_core.store import Store
from iris_core.summary import Row, cells, headers, markdown, rows, samples
from tasks.stage import artifact_key


def show_row(store: Store, row: Row) -> None:
    """One row of the table, with each benchmark's score, as a table artifact."""
    shown = dict(zip(headers([row]), cells(row), strict=True))
    shown |= {name: f"{100 * score:.1f}" for name, score in row.benchmarks.items()}
    where = "initial-model" if row.iteration is None else f"iteration-{row.iteration}"
    create_table_artifact(
        [{"quantity": name, "value": value} for name, value in shown.items() if value],
        key=artifact_key(store.home.name, where),
        description=where.replace("-", " "),
    )


def show_table(store: Store) -> None:
    """The table of all iterations so far as a Markdown artifact; the latest version is the current one."""
    create_markdown_artifact(
        f"# {store.home.name}\n\n{markdown(rows(store))}\n",
        key=artifact_key(store.home.name, "iterations"),
        description="iterations",
    )


def show_report(store: Store, report: Path) -> None:
    """The table, some answers before and after, and where the whole report lies, as a Markdown artifact."""
    parts = [f"# {store.home.name}", markdown(rows(store)), "## Before and after"]
    for sample in samples(store):
        parts += [
            f"**{_inline(sample.prompt)}**",
            f"- annotated: {_inline(sample.annotated)}\n- before: {_inline(sample.before)}\n"
            f"- after: {_inline(sample.after)}",
        ]
    parts.append(f"The whole report, with plots: `{report}`")
    key = artifact_key(store.home.name, "report")
    create_markdown_artifact("\n\n".join(parts), key=key, description="report")


def _inline(text: str) -> str:
    """`text` on one line, so that it stays inside its Markdown element."""
    return " ⏎ ".join(text.split("\n"))
