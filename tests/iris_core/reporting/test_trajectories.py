"""What training with an objective did, over its seeds: figures matched by held-out prompt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from iris_core.common.errors import DataError
from iris_core.pipeline.members import compare_spec
from iris_core.reporting.trajectories import Trajectory, trajectories
from iris_core.store import Outcome
from tests.iris_core.small_experiment import PROMPTS, SmallExperiment

pytestmark = pytest.mark.unit


def test_steps_are_those_of_all_iterations_and_a_mean_over_seeds(tmp_path: Path) -> None:
    small = [SmallExperiment(tmp_path / str(seed), [0.3, 0.3], seed=seed, steps=6 + 2 * seed) for seed in (0, 1)]
    for each in small:
        each.iterations()
    assert [compared(each).steps for each in small] == [12, 16]
    assert compared(*small).steps == 14


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
