"""Objectives side by side: the table, the plots, and the differences of a page."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from iris_core.common.intervals import Interval
from iris_core.reporting import figures
from iris_core.reporting.comparison import cells, headers, plots, render
from iris_core.reporting.paired import Difference
from iris_core.reporting.trajectories import Trajectory

pytestmark = pytest.mark.unit


def test_members_are_named_by_objective_and_verdicts(found: list[Trajectory]) -> None:
    assert [row.objective for row in found] == ["sft", "iris verified"]  # the highest log-prob first
    assert headers(found)[4] == "accuracy (math) [95 %]"
    assert [cells(row)[2] for row in found] == ["6", "6"]  # steps
    assert [len(row.exact_match) for row in found] == [2, 2]
    assert [cells(row)[-1] for row in found] == ["30.0 (miniature)"] * 2


def test_the_page_has_the_frontier_and_the_differences(found: list[Trajectory]) -> None:
    page = render("both", found)
    alts = re.findall(r'aria-label="([^"]*ends at[^"]*)"', page)
    assert re.search("sft ends at 0.25; iris verified ends at 0.75$", alts[1])
    assert re.fullmatch(
        r"sft ends at 0\.25 \[.*\], log-prob -1\.200; iris verified ends at 0\.75 \[.*\], log-prob -1\.400", alts[2]
    )
    assert "accuracy (math), percentage points" in page
    assert '<b>+50.0</b> <span class="interval">[+3.9, +76.1]</span>' in page
    assert page.count("<svg") == 3


def test_accuracy_begins_where_it_was_checked(found: list[Trajectory]) -> None:
    """Without an evaluation of the initial model there is a value less than models."""
    unscored = [row.model_copy(update={"exact_match": row.exact_match[1:]}) for row in found]
    for rows, models in ((found, ["initial", "0"]), (unscored, ["0"])):
        (plot,) = (plot for plot in plots(rows) if plot.title == "Accuracy (math)")
        assert [model for model in ("initial", "0") if f">{model}</text>" in plot.svg] == models


def test_plots_have_the_colours_of_the_page_light_and_dark(found: list[Trajectory]) -> None:
    names = [f"objective {number}" for number in range(len(figures.COMPARED))]
    many = [found[0].model_copy(update={"objective": name, "differences": {}}) for name in names]
    drawn = [plot.svg for plot in plots(many)]
    for svg in drawn:
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) <= {"#000000"}
    used = set(re.findall(r"var\((--\w+)\)", "".join(drawn)))
    light, dark = (files("iris_core.reporting") / "templates" / "page.css").read_text().split("@media", 2)[:2]
    assert len(used) == len(figures.COMPARED) + 3  # ink, muted and line
    assert all(f"{variable}:" in light and f"{variable}:" in dark for variable in used)


def test_a_difference_is_bold_where_its_interval_is_apart_from_0(found: list[Trajectory]) -> None:
    """Without accuracy the differences are those of log-prob."""
    value = Interval(value=0.02, low=-0.01, high=0.05)
    unsure = Difference(accuracy=None, logprob=value)
    sure = Difference(accuracy=None, logprob=value.model_copy(update={"low": 0.01}))
    rows = [
        row.model_copy(update={"exact_match": [], "differences": {other: each}})
        for row, other, each in zip(found, ("iris verified", "sft"), (unsure, sure), strict=True)
    ]
    page = render("both", rows)
    assert '<td>+0.020 <span class="interval">[-0.010, +0.050]</span></td>' in page
    assert '<td><b>+0.020</b> <span class="interval">[+0.010, +0.050]</span></td>' in page
    assert page.count("<svg") == 1
