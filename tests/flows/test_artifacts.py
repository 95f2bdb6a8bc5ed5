"""What the flows show in the Prefect UI: tables with their warnings, as text that means nothing in Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect import flow
from prefect.artifacts import Artifact

from flows.artifacts import show_report, show_row, show_table
from iris_core.summary import rows
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


@flow
def show(small: SmallExperiment) -> None:
    show_table(small.store)
    show_row(small.store, rows(small.store)[-1])
    show_report(small.store, Path("report.html"))


def data(key: str) -> str:
    found = Artifact.get(key)
    assert found is not None
    assert isinstance(found.data, str)
    return found.data


@pytest.mark.parametrize("warns", [True, False])
def test_warnings_are_shown_where_the_numbers_are(tmp_path: Path, warns: bool) -> None:
    small = SmallExperiment(tmp_path, [0.3])
    if warns:
        small.warnings = {"generate": ["<b>1</b> of *8* | is [cut](x)"]}
    small.initial()
    small.iterations()
    show.with_options(validate_parameters=False)(small)
    line = r"- iteration 0 · generate: \<b\>1\</b\> of \*8\* \| is \[cut\](x)"
    for key in ("small-iterations", "small-report"):
        assert (f"## Warnings\n\n{line}" in data(key)) == warns
        assert ("arning" in data(key)) == warns
    shown = json.loads(data("small-iteration-0"))
    warned = [row["value"] for row in shown if row["quantity"] == "warning"]
    assert warned == (["<b>1</b> of *8* | is [cut](x)"] if warns else [])
