"""The ten benchmarks: which task of lm-evaluation-harness, how many shots, which metric.

The table is the protocol of arXiv 2601.08198. Prompts, few-shot examples, filters and scoring are the harness's own;
a test compares the table with its task definitions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_core.common.errors import EvaluationError

LABEL_FILE = "LABEL"  # in a data folder: the label that scores on it must carry
NLTK_FOLDER = "nltk_data"  # in a data folder: the sentence tokenizer that IFEval counts with


@dataclass(frozen=True)
class Benchmark:
    """One of the ten.

    Attributes:
        name: its name in a recipe.
        title: its name in a table.
        task: task or group of lm-evaluation-harness.
        data: the data set on the hub that it reads.
        folder: the folder of its definition, below the harness's `tasks`.
        shots: examples in each prompt.
        metric: the metric that is the score.
        filter: the filter of answers that the score uses.
        recorded: other results to keep in the record, each as "metric,filter".
        generates: whether the model generates its answer; else a choice is made by likelihood.
    """

    name: str
    title: str
    task: str
    data: str
    folder: str
    shots: int
    metric: str
    filter: str = "none"
    recorded: tuple[str, ...] = ()
    generates: bool = False


_TABLE = (
    Benchmark(
        "gsm8k",
        "GSM8K",
        "gsm8k",
        "openai/gsm8k",
        "gsm8k",
        5,
        "exact_match",
        "strict-match",
        ("exact_match,flexible-extract",),
        generates=True,
    ),
    Benchmark(
        "math",
        "MATH",
        "leaderboard_math_hard",
        "DigitalLearningGmbH/MATH-lighteval",
        "leaderboard/math",
        4,
        "exact_match",
        generates=True,
    ),
    Benchmark("musr", "MUSR", "leaderboard_musr", "TAUR-Lab/MuSR", "leaderboard/musr", 0, "acc_norm"),
    Benchmark("mmlu", "MMLU", "mmlu", "cais/mmlu", "mmlu/default", 5, "acc"),
    Benchmark("mmlu_pro", "MMLU-Pro", "leaderboard_mmlu_pro", "TIGER-Lab/MMLU-Pro", "leaderboard/mmlu_pro", 5, "acc"),
    Benchmark("gpqa", "GPQA", "leaderboard_gpqa", "Idavidrein/gpqa", "leaderboard/gpqa", 0, "acc_norm"),
    Benchmark("hellaswag", "HellaSwag", "hellaswag", "Rowan/hellaswag", "hellaswag", 10, "acc_norm"),
    Benchmark("winogrande", "WinoGrande", "winogrande", "allenai/winogrande", "winogrande", 5, "acc"),
    Benchmark("bbh", "BBH", "leaderboard_bbh", "SaylorTwift/bbh", "leaderboard/bbh_mc", 3, "acc_norm"),
    Benchmark(
        "ifeval",
        "IFEval",
        "leaderboard_ifeval",
        "wis-k/instruction-following-eval",
        "leaderboard/ifeval",
        0,
        "prompt_level_strict_acc",
        recorded=("prompt_level_loose_acc,none", "inst_level_strict_acc,none"),
        generates=True,
    ),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _TABLE}


@dataclass(frozen=True)
class DataSet:
    """A data set that a benchmark reads: its name on the hub, config (None: the default one) and splits."""

    path: str
    config: str | None
    splits: tuple[str, ...]


def benchmark(name: str) -> Benchmark:
    """The benchmark called `name`.

    Raises:
        EvaluationError: there is none.
    """
    if name not in BENCHMARKS:
        raise EvaluationError(f"evaluation.benchmarks: {name!r} is none of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


@functools.cache
def task_manager(names: tuple[str, ...] = tuple(BENCHMARKS)) -> Any:
    """lm-evaluation-harness's task manager for these benchmarks alone: to index all of its tasks takes longer."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders = [root / BENCHMARKS[name].folder for name in names]
    return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)


def leaves(task: str, manager: Any) -> list[dict[str, Any]]:
    """The definitions of the tasks that `task` consists of, in the harness's order, without loading any data."""
    entry = manager.task_index[task]
    members = entry.cfg.get("task") if entry.cfg else sorted(entry.tags)
    if isinstance(members, list):
        names = [member if isinstance(member, str) else member["task"] for member in members]
        return [leaf for name in names for leaf in leaves(name, manager)]
    return [entry.cfg]


def data_sets(names: Iterable[str]) -> list[DataSet]:
    """The data sets that the benchmarks `names` read, each data set and config once."""
    chosen = tuple(names)
    manager = task_manager(chosen)
    splits: dict[tuple[str, str | None], dict[str, None]] = {}
    for name in chosen:
        for leaf in leaves(BENCHMARKS[name].task, manager):
            found = splits.setdefault((leaf["dataset_path"], leaf.get("dataset_name")), {})
            found.update(dict.fromkeys(_splits(leaf)))
    return [DataSet(path, config, tuple(found)) for (path, config), found in splits.items()]


def _splits(leaf: dict[str, Any]) -> list[str]:
    """The splits that a task reads: the scored one, and the one with its few-shot examples."""
    scored = leaf.get("test_split") or leaf.get("validation_split")
    fewshot = leaf.get("fewshot_config") or {}
    examples = leaf.get("fewshot_split") or leaf.get("training_split")
    own = "samples" in fewshot or leaf.get("num_fewshot") == 0
    return [split for split in (scored, None if own else examples) if split]
