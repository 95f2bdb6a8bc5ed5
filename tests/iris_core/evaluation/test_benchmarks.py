"""The table of the ten against the protocol and against lm-evaluation-harness's own task definitions."""

from __future__ import annotations

from typing import Any

import pytest

from iris_core.common.errors import EvaluationError
from iris_core.config.experiment import TEN
from iris_core.evaluation.benchmarks import (
    BENCHMARKS,
    Benchmark,
    benchmark,
    data_sets,
    leaves,
    task_manager,
)

PROTOCOL = {  # arXiv 2601.08198
    "gsm8k": ("gsm8k", 5, "exact_match"),
    "math": ("leaderboard_math_hard", 4, "exact_match"),
    "musr": ("leaderboard_musr", 0, "acc_norm"),
    "mmlu": ("mmlu", 5, "acc"),
    "mmlu_pro": ("leaderboard_mmlu_pro", 5, "acc"),
    "gpqa": ("leaderboard_gpqa", 0, "acc_norm"),
    "hellaswag": ("hellaswag", 10, "acc_norm"),
    "winogrande": ("winogrande", 5, "acc"),
    "bbh": ("leaderboard_bbh", 3, "acc_norm"),
    "ifeval": ("leaderboard_ifeval", 0, "prompt_level_strict_acc"),
}
SUBTASKS = {"math": 7, "musr": 3, "mmlu": 57, "gpqa": 3, "bbh": 24}

pytestmark = pytest.mark.unit
each = pytest.mark.parametrize("item", BENCHMARKS.values(), ids=str)


def test_the_table_is_the_protocol() -> None:
    table = {item.name: (item.task, item.shots, item.metric) for item in BENCHMARKS.values()}
    assert table == PROTOCOL
    assert tuple(BENCHMARKS) == TEN


@each
def test_shots_are_the_harness_s_own_where_it_fixes_them(item: Benchmark) -> None:
    for leaf in leaves(item.task, task_manager()):
        assert leaf.get("num_fewshot") in (None, item.shots)


@each
def test_metric_and_filter_exist_in_every_task(item: Benchmark) -> None:
    for leaf in leaves(item.task, task_manager()):
        metrics = {entry["metric"] for entry in leaf["metric_list"]}
        filters = {entry["name"] for entry in leaf.get("filter_list", [])} or {"none"}
        results = {f"{metric},{name}" for metric in metrics for name in filters}
        assert {f"{item.metric},{item.filter}", *item.recorded} <= results
        assert (leaf["output_type"] == "generate_until") == item.generates


@each
def test_groups_weight_their_tasks_by_size(item: Benchmark) -> None:
    group: dict[str, Any] = task_manager().task_index[item.task].cfg
    assert len(leaves(item.task, task_manager())) == SUBTASKS.get(item.name, 1)
    if item.name in SUBTASKS:
        (aggregation,) = group["aggregate_metric_list"]
        assert aggregation["metric"] == item.metric
        assert aggregation["weight_by_size"]


def test_gsm8k_reports_strict_and_records_flexible() -> None:
    item = benchmark("gsm8k")
    assert item.filter == "strict-match"
    assert item.recorded == ("exact_match,flexible-extract",)


def test_an_unknown_benchmark_is_named_with_those_known() -> None:
    with pytest.raises(EvaluationError, match="'gsm9k' is none of gsm8k, math, musr"):
        benchmark("gsm9k")


def test_data_sets_with_the_splits_that_are_read() -> None:
    found = {(item.path, item.config): item.splits for item in data_sets(BENCHMARKS)}
    assert len(found) == 97
    assert {path for path, _ in found} == {item.data for item in BENCHMARKS.values()}
    assert all({item.data} == {found.path for found in data_sets([name])} for name, item in BENCHMARKS.items())
    assert found["openai/gsm8k", "main"] == ("test", "train")
    assert found["cais/mmlu", "virology"] == ("test", "dev")
    assert found["Rowan/hellaswag", None] == ("validation", "train")
    assert found["SaylorTwift/bbh", "snarks"] == ("test",)
    assert found["Idavidrein/gpqa", "gpqa_diamond"] == ("train",)
    assert len(found["TAUR-Lab/MuSR", None]) == 3
