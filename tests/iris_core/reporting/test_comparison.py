"""Objectives side by side: the label of accuracy, the frontier, and differences prompt by prompt."""

from __future__ import annotations

import re

import pytest

from iris_core.pipeline.plan import compare_spec
from iris_core.reporting.comparison import Trajectory, headers, render, trajectories
from tests.iris_core.small_experiment import SmallExperiment

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
    assert headers(found)[3] == "accuracy (math) [95 %]"
    assert [len(row.exact_match) for row in found] == [2, 2]


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
    assert re.fullmatch(
        r"sft ends at 0\.25 \[.*\], log-prob -1\.200; iris verified ends at 0\.75 \[.*\], log-prob -1\.400", alts[1]
    )
    assert "accuracy (math), percentage points" in page
    assert "<td>+50.0 [+3.9, +76.1]</td>" in page
    assert page.count("<svg") == 2
