"""The table of an experiment, from manifests that the loop's own specs have made."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_core.objectives.gap import Gap
from iris_core.pipeline.metrics import RegisterMetrics
from iris_core.reporting.summary import (
    Champion,
    Row,
    cells,
    champion,
    headers,
    iterations,
    markdown,
    rows,
    samples,
    warnings,
)
from iris_core.store import Outcome, Store
from tests.iris_core.small_experiment import SmallExperiment, around

pytestmark = pytest.mark.unit


def test_empty_store_has_no_rows(tmp_path: Path) -> None:
    store = Store(tmp_path, "nothing")
    assert rows(store) == []
    assert samples(store) == []


def test_rows_of_initial_model_and_iterations(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3, 0.4])
    small.initial()
    small.iterations()
    initial, first, second = rows(small.store)
    assert list(iterations(small.store)) == [0, 1]
    assert initial.iteration is None
    assert initial.logprob == around(-1.7)  # what the opponent of iteration 0 gives
    assert initial.gap is None
    assert initial.average == 0.2
    assert (first.iteration, first.order, first.label) == (0, 2.0, "miniature")
    assert first.gap == Gap(value=0.8, ess=6, pairs=8, confirmed=True)
    assert (first.ess_annotated, first.ess_synthetic) == (50.0, 40.0)
    assert second.order == 1.5
    assert second.reward_margin == pytest.approx(0.4)
    assert second.benchmarks == pytest.approx({"gsm8k": 0.3, "mmlu": 0.5})


def test_unfinished_iteration_shows_what_is_known(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3])
    small.iterations()
    (small.store.home / "iteration-0" / "evaluate").unlink()
    initial, first = rows(small.store)
    assert initial.exact_match is None
    assert first.gap is not None
    assert first.average is None


def test_evaluation_without_a_score(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [None])
    small.iterations()
    assert rows(small.store)[-1].average is None


def test_cells_fit_the_headers(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3])
    small.initial()
    small.iterations()
    found = rows(small.store)
    names = headers(found)
    assert names[-1] == "miniature average, %"
    assert all(len(cells(row)) == len(names) for row in found)
    assert cells(found[1]) == [
        "0",
        "2",
        "0.800 (6 of 8)",
        "50.00 / 40.00",
        "0.3",
        "-1.50 [-1.60, -1.40]",
        "0.30 [0.20, 0.40]",
        "30.0 ± 1.0",
    ]
    assert cells(found[1].model_copy(update={"ess_synthetic": None}))[3] == "50.00 / –"
    lines = markdown(found).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_scores_with_other_settings_stand_in_no_column(tmp_path: Path) -> None:
    """The initial model scored again with another limit, as `iris-evaluate` may: its exact match is comparable."""
    small = SmallExperiment(tmp_path, [0.3], label=None)
    small.initial()
    small.iterations()
    wanted = {"benchmarks": ["gsm8k", "mmlu"], "limit": 3}
    SmallExperiment(tmp_path, [0.3], evaluation=wanted).initial()
    initial, first = rows(small.store)
    assert (initial.average, initial.label, initial.benchmarks) == (None, None, {})
    assert initial.exact_match is not None
    assert cells(initial)[-1] == "other settings"
    assert first.other == []
    assert headers([initial, first])[-1] == "average, %"
    SmallExperiment(tmp_path, [0.3], generation={"max_new_tokens": 9}).initial()
    assert cells(rows(small.store)[0])[-2] == "other settings"


def test_an_average_whose_error_is_unknown_has_none(tmp_path: Path) -> None:
    assert cells(Row(iteration=0, average=0.3, stderr=None))[-1] == "30.0"


def test_warnings_and_champion_in_the_order_of_the_stages(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3, 0.4])
    assert warnings(small.store) == []
    small.warnings = {"train": ["b", "c"], "generate": ["a"]}
    specs = small.iterations()
    at = "iteration-0/generate", "iteration-0/train", "iteration-1/generate"
    assert warnings(small.store)[:4] == [(at[0], "a"), (at[1], "b"), (at[1], "c"), (at[2], "a")]
    assert champion(small.store) is None
    for t, (spec, won) in enumerate(zip(specs, (True, False), strict=True)):
        ids = {"run_id": "a", "parent_run_id": "b"}
        metrics = RegisterMetrics(**ids, version=t + 1, champion=won, champion_note=f"because {t}")
        small.run(
            spec,
            f"iteration-{t}/register",
            lambda *_, found=metrics: Outcome(outputs={}, metrics=found),
        )
    assert champion(small.store) == Champion(iteration=0, version=1, note="because 0")


def test_samples_before_and_after(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3, 0.4])
    small.initial()
    small.iterations()
    found = samples(small.store, count=3)
    assert [sample.prompt for sample in found] == [f"What is {i} + {i}?" for i in (0, 2, 4)]
    assert found[1].annotated == "Answer: 4"
    assert found[1].before != found[1].after


def test_no_samples_without_initial_evaluation(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3])
    small.iterations()
    assert samples(small.store) == []
