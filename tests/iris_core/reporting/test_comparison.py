"""Objectives side by side: the label of accuracy, the frontier, and what is matched prompt by prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from iris_core.common.errors import DataError
from iris_core.common.intervals import Interval
from iris_core.pipeline.members import compare_spec
from iris_core.reporting import figures
from iris_core.reporting.comparison import cells, headers, plots, render
from iris_core.reporting.paired import Difference
from iris_core.reporting.trajectories import Trajectory, trajectories
from iris_core.store import Outcome
from tests.iris_core.small_experiment import PROMPTS, SmallExperiment

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """SFT ends with 2 of 8 answers right and a log-prob of -1.2, verified IRIS with 6 of 8 and -1.4."""
    members = []
    for name, right, logprob in (("sft", 0.25, -1.2), ("iris", 0.75, -1.4)):
        small = SmallExperiment(
            tmp_path_factory.mktemp(name),
            [0.3],
            exact=[0.125, right],
            logprobs=[-1.7, logprob],
            objective={"name": name},
            verification={"kind": "math"},
        )
        small.initial()
        small.iterations()
        members.append(small.experiment)
    return trajectories(compare_spec(members[0], members).members)


def test_members_are_named_by_objective_and_verdicts(found: list[Trajectory]) -> None:
    assert [row.objective for row in found] == ["sft", "iris verified"]  # the highest log-prob first
    assert headers(found)[4] == "accuracy (math) [95 %]"
    assert [cells(row)[2] for row in found] == ["6", "6"]  # steps
    assert [len(row.exact_match) for row in found] == [2, 2]
    assert [cells(row)[-1] for row in found] == ["30.0 (miniature)"] * 2


def test_differences_are_paired_by_prompt(found: list[Trajectory]) -> None:
    """4 of 8 prompts change from wrong to right. Agresti and Min add half a +1, half a -1 and one 0: the center is
    4/10, the variance (5/10 - .16)/10 = .034, so the interval is .4 ± 1.96·.1844. Every log-prob differs by -.2.
    """
    change = found[1].differences["sft"]
    assert change.accuracy is not None
    assert change.accuracy.value == pytest.approx(0.5)
    assert [change.accuracy.low, change.accuracy.high] == pytest.approx([0.0386, 0.7614], abs=1e-4)
    assert change.logprob.value == pytest.approx(-0.2)
    assert change.logprob.high < 0
    back = found[0].differences["iris verified"].accuracy
    assert back is not None
    assert back.value == pytest.approx(-0.5)


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


class Rearranged(SmallExperiment):
    """A small experiment with only the held-out prompts `rows`, in this order."""

    def __init__(self, root: Path, rows: Iterable[int], seed: int):
        self.rows = list(rows)
        super().__init__(root, [0.3], objective={"name": "sft"}, verification={"kind": "math"}, seed=seed)
        self.initial()
        self.iterations()

    def prepare(self, spec: Any, out: Path) -> Outcome:
        return self.rearrange(super().prepare(spec, out), out / "pairs.parquet")

    def train(self, t: int) -> Any:
        work = super().train(t)
        return lambda spec, out: self.rearrange(work(spec, out), out / "heldout.parquet")

    def evaluate(self, average: float | None, exact: float) -> Any:
        work = super().evaluate(average, exact)
        return lambda spec, out: self.rearrange(work(spec, out), out / "heldout.parquet")

    def rearrange(self, outcome: Outcome, file: Path) -> Outcome:
        pq.write_table(pq.read_table(file).take(self.rows), file)
        return outcome


def compared(*small: SmallExperiment) -> Trajectory:
    """The trajectory of one objective from its seeds."""
    (found,) = trajectories(compare_spec(small[0].experiment, [each.experiment for each in small]).members)
    return found


def test_seeds_are_matched_by_prompt_in_any_order(tmp_path: Path) -> None:
    """Two seeds that give the same for each prompt: intervals over prompts must not shrink by another order."""
    first = Rearranged(tmp_path / "first", range(PROMPTS), 0)
    same = compared(first, Rearranged(tmp_path / "same", range(PROMPTS), 1))
    other = compared(first, Rearranged(tmp_path / "other", reversed(range(PROMPTS)), 1))
    assert same.logprob[-1].high - same.logprob[-1].low > 0.05
    for before, after in zip([*same.logprob, *same.exact_match], [*other.logprob, *other.exact_match], strict=True):
        assert [after.value, after.low, after.high] == pytest.approx([before.value, before.low, before.high])
    assert other.seeds == [0, 1]


def test_members_on_other_prompts_are_refused(tmp_path: Path) -> None:
    first = Rearranged(tmp_path / "first", range(PROMPTS), 0)
    for name, rows in (("fewer", range(PROMPTS - 1)), ("others", range(1, PROMPTS))):
        second = Rearranged(tmp_path / name, rows, 1)
        with pytest.raises(DataError, match=r"^comparison: sft with seed 1 was .* the data changed .* another name$"):
            compared(first, second)
