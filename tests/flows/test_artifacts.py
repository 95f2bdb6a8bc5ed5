"""What the flows show in the Prefect UI: tables with their warnings, as text that means nothing in Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.demo import RECIPES
from flows.artifacts import plan_text, quantities, report_text, table
from iris_core.common.markup import markdown
from iris_core.config.recipe import load_recipe
from iris_core.pipeline.sizes import Sizes
from iris_core.reporting.machine import parse_machine
from iris_core.reporting.resources import resources
from iris_core.reporting.summary import Sample, rows
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.unit
WARNING = "<b>1</b> of *8* | is [cut](x)"


@pytest.mark.parametrize("warns", [True, False])
def test_warnings_are_shown_where_the_numbers_are(tmp_path: Path, warns: bool) -> None:
    small = SmallExperiment(tmp_path, [0.3])
    small.warnings = {"generate": [WARNING]} if warns else {}
    small.initial()
    small.iterations()
    line = r"- iteration 0 · generate: \<b\>1\</b\> of \*8\* \| is \[cut\](x)"
    assert table(small.store).endswith(f"\n\n## Warnings\n\n{line}") == warns
    assert ("## Warnings" in table(small.store)) == warns
    initial, first = (quantities(small.store, row) for row in rows(small.store))
    assert [row["value"] for row in first if row["quantity"] == "warning"] == [WARNING] * warns
    assert not [row for row in initial if row["quantity"] == "warning"]
    assert {"quantity": "mmlu", "value": "40.0"} in first


def test_answers_and_paths_are_text_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SmallExperiment(tmp_path, [0.3])
    small.initial()
    small.iterations()
    hostile = Sample("![x](//e/x)", "[y](javascript:f())", "<img src=//e>\n# a", "```\x1b[0m")
    monkeypatch.setattr("flows.artifacts.samples", lambda store: [hostile])
    text = report_text(small.store, tmp_path / "`a`|b" / "report.html", "http://h/#/runs/1")
    assert text.endswith(
        "\n\n".join(
            [
                r"**\!\[x\](//e/x)**",
                "- annotated: \\[y\\](javascript:f())\n- before: \\<img src=//e\\> ⏎ \\# a\n"
                "- after: \\`\\`\\`\\\\x1b\\[0m",
                f"The whole report, with plots: {markdown(str(tmp_path))}/\\`a\\`\\|b/report.html, "
                "and [in MLflow](http://h/#/runs/1)",
            ]
        )
    )


def test_the_plan_is_a_table_with_its_assumptions() -> None:
    sizes = Sizes(
        parameters=7_000_000_000,
        adapter=40_000_000,
        matrices=6_800_000_000,
        layers=32,
        matrices_in_layer=200_000_000,
        hidden=4096,
        inner=14336,
    )
    needs = resources(load_recipe(RECIPES / "zephyr-7b-ultrachat-50k.yaml"), sizes, parse_machine("8xH100-80GB"))
    title, intro, table, *assumptions = plan_text("a*b", needs).split("\n\n")
    assert title == r"# a\*b"
    assert intro == "What the run needs of 8 × H100 with 80 GB:"
    assert "| each GPU: weights | 3.5 GB |" in table
    assert "| training.sharding | full |" in table
    assert assumptions == needs.assumptions
    assert assumptions[1].startswith("training: 44% of the card's 989 dense bf16 TFLOP/s")


def test_the_shares_of_verdicts_are_among_the_numbers(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3], verification={"kind": "math"})
    small.initial()
    small.iterations()
    initial, first = (quantities(small.store, row) for row in rows(small.store))
    shown = {row["quantity"]: row["value"] for row in first}
    assert shown["right responses, %"] == "62.5"
    assert shown["prompts with right and wrong responses, %"] == "75.0"
    assert shown["accuracy (math) [95 %]"] == "0.30 [0.20, 0.40]"
    assert "right responses, %" not in {row["quantity"] for row in initial}
