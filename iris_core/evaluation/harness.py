"""lm-evaluation-harness behind four functions: load the tasks, open the model, score a benchmark, answer prompts.

One model object serves every benchmark and the held-out prompts. Task definitions are the harness's own, unmodified.
"""

from __future__ import annotations

import functools
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iris_core.common.digest import json_digest
from iris_core.common.errors import EvaluationError, IrisError, ServiceError
from iris_core.data.templates import Template
from iris_core.evaluation.benchmarks import (
    BENCHMARKS,
    NLTK_FOLDER,
    Benchmark,
    data_sets,
    task_manager,
)
from iris_core.evaluation.mirror import in_mirror
from iris_core.generation import backends
from iris_core.generation.engines import served_rank, vllm_settings
from iris_core.modeling import loading
from iris_core.store import Artifact, Policy

FEWSHOT_SEED = 1234  # the harness's own default: which examples a prompt shows, whatever the experiment's seed
LOAD_SEED = 0  # GPQA shuffles its choices while it is loaded
BATCH_SIZE = 16
MAX_LENGTH = 8192  # longer than any prompt of the ten; bounds vLLM's memory

Tasks = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A benchmark's result.

    Attributes:
        value: the metric, between 0 and 1.
        stderr: its standard error; None with fewer than two items.
        items: the metric of each item, in the harness's order, for comparisons paired by item.
        items_digest: SHA-256 over the items' content; it pins a data set whose revision is not pinned.
        task_version: the harness's version of the task.
        recorded: other results, by "metric,filter".
    """

    value: float
    stderr: float | None
    items: list[float]
    items_digest: str
    task_version: Any
    recorded: dict[str, float]


def resolve_backend(name: str) -> str:
    """ "vllm" or "hf"; "auto" is vLLM on a GPU and transformers on a CPU, where it is faster and starts at once.

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    if name == "auto" and not torch.cuda.is_available():
        return "hf"
    return backends.resolve("evaluation.backend", name, "hf")


def load_tasks(names: Sequence[str], data: Artifact | None) -> dict[str, Tasks]:
    """The tasks of the benchmarks `names` with their data, from the mirror `data` or the hub.

    Raises:
        EvaluationError: a data set is missing or cannot be read; the message names it and the remedy.
        ServiceError: the hub cannot be reached.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # a line for each of a hundred tasks
    if data is not None:
        _check_folders(names, data.path)
    if "ifeval" in names:
        _prepare_ifeval(data)
    manager = task_manager(tuple(names))
    loaded = {}
    with _data_from(data):
        for name in names:
            random.seed(LOAD_SEED)
            try:
                loaded[name] = manager.load([BENCHMARKS[name].task])
            except Exception as error:  # datasets and the harness raise many kinds
                raise _no_data(name, data, error) from error
    return loaded


def open_model(
    policy: Policy,
    backend: str,
    dtype: str,
    *,
    template: Template,
    ends: list[int],
    trust_remote_code: bool,
    batch_size: int,
) -> Any:
    """The harness's model for `policy`: vLLM serving base and adapter, or transformers with shared prefixes.

    Args:
        policy: what is scored.
        backend: "vllm" or "hf".
        dtype: "bfloat16" or "float32".
        template: renders the prompts of benchmarks that are asked as a chat.
        ends: tokens that end what the model generates.
        trust_remote_code: run code from the model's folder.
        batch_size: prompts that generate together.
    """
    opened = (
        _open_vllm(policy, dtype, trust_remote_code)
        if backend == "vllm"
        else _open_hf(policy, dtype, template, trust_remote_code, batch_size)
    )
    opened.template, opened.ends = template, ends
    return opened


def _open_hf(policy: Policy, dtype: str, template: Template, trust_remote_code: bool, batch_size: int) -> Any:
    from iris_core.evaluation.prefix_lm import PrefixLM

    model = loading.load_policy(policy, dtype, trust_remote_code=trust_remote_code)
    if policy.adapter is not None and dtype == "float32":  # in bf16, merging would round
        model = model.merge_and_unload()
    loading.sample_plainly(model)
    return PrefixLM(model, template.tokenizer, batch_size)


def score(
    lm: Any,
    benchmark: Benchmark,
    tasks: Tasks,
    *,
    limit: int | None,
    apply_chat_template: bool,
    max_gen_tokens: int | None,
) -> Result:
    """Runs one benchmark.

    Args:
        lm: from `open_model`.
        benchmark: which.
        tasks: its tasks, from `load_tasks`.
        limit: items per task; None: all.
        apply_chat_template: wrap prompts in the model's chat template, each example a turn.
        max_gen_tokens: cap on generated tokens; None: the task's own.
    """
    import lm_eval.api.task
    import lm_eval.evaluator
    import tqdm

    lm_eval.api.task.tqdm = functools.partial(tqdm.tqdm, disable=True)  # a bar for each of a hundred tasks
    random.seed(LOAD_SEED)
    np.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)
    for task in tasks["tasks"].values():
        _configure(task, benchmark.shots, max_gen_tokens, lm.max_gen_toks)
    results = lm_eval.evaluator.evaluate(
        lm,
        tasks,
        limit=limit,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=apply_chat_template,
    )
    return _result(benchmark, results)


def _open_vllm(policy: Policy, dtype: str, trust_remote_code: bool) -> Any:
    settings = vllm_settings(dtype)
    from transformers import AutoConfig

    from iris_core.evaluation.prefix_vllm import PrefixVLLM

    config = AutoConfig.from_pretrained(policy.model.path, trust_remote_code=trust_remote_code).get_text_config()
    if policy.adapter is not None:
        settings |= {
            "lora_local_path": str(policy.adapter.path),
            "max_lora_rank": served_rank(policy.adapter.path),
        }
    if not torch.cuda.is_available():
        settings["block_size"] = 32  # of the prefix cache; 128 by default, half a few-shot prompt
    return PrefixVLLM(
        str(policy.model.path),
        max_model_len=min(getattr(config, "max_position_embeddings", MAX_LENGTH), MAX_LENGTH),
        trust_remote_code=trust_remote_code,
        **settings,
    )


def _configure(task: Any, shots: int, max_gen_tokens: int | None, default_tokens: int) -> None:
    """What the harness's `simple_evaluate` would set on a task for these arguments."""
    if task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if max_gen_tokens is not None and task.get_config("output_type") == "generate_until":
        own = (task.get_config("generation_kwargs") or {}).get("max_gen_toks", default_tokens)
        task.set_config(key="generation_kwargs", value={"max_gen_toks": min(own, max_gen_tokens)}, update=True)


def _result(benchmark: Benchmark, results: Any) -> Result:
    scores = results["results"][benchmark.task]
    samples = [
        sample
        for task_samples in results["samples"].values()
        for sample in task_samples
        if sample["filter"] == benchmark.filter
    ]
    items = [float(sample[benchmark.metric]) for sample in samples]
    stderr = scores.get(f"{benchmark.metric}_stderr,{benchmark.filter}")
    if not isinstance(stderr, float):  # the harness gives none where a subtask has one item: pool the items
        stderr = float(np.std(items, ddof=1) / len(items) ** 0.5) if len(items) > 1 else None
    version = results["versions"].get(benchmark.task, "N/A")
    if version == "N/A":  # a group without a version of its own: that of its tasks
        version = results["versions"][next(iter(results["samples"]))]
    return Result(
        value=float(scores[f"{benchmark.metric},{benchmark.filter}"]),
        stderr=stderr,
        items=items,
        items_digest=json_digest([[sample["doc_hash"], sample["target_hash"]] for sample in samples]),
        task_version=version,
        recorded={name: float(scores[name]) for name in benchmark.recorded},
    )


def _check_folders(names: Sequence[str], folder: Path) -> None:
    """Raises EvaluationError for the first data set that has no folder in the mirror (it would come from the hub)."""
    for name in names:
        for item in data_sets([name]):
            if not (folder / item.path).is_dir():
                raise EvaluationError(
                    f"evaluation.data_dir: {folder} has no data set {item.path}. {_remedy(name, folder)}"
                )


def _no_data(name: str, data: Artifact | None, error: Exception) -> IrisError:
    needed = data_sets([name])
    if data is not None:
        missing = next((item for item in needed if not in_mirror(data.path, item)), needed[0])
        place = f"data set {missing.path}, config {missing.config or 'default'}, splits {', '.join(missing.splits)}"
        return EvaluationError(
            f"evaluation.data_dir: {name} cannot read {data.path} ({place}): {error}. {_remedy(name, data.path)}"
        )
    message = f"evaluation: {name} needs {needed[0].path}, which cannot be loaded from the hub: {error}. "
    remedy = "Set evaluation.data_dir to a mirror (`python -m iris_core.mirror --out DIR` makes one) or to `miniature`"
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    return (
        ServiceError(message + remedy)
        if isinstance(error, ConnectionError) and not offline
        else EvaluationError(message + remedy)
    )


def _remedy(name: str, folder: Path) -> str:
    return f"Add it where there is a network: `python -m iris_core.mirror --out {folder} --benchmarks {name}`"


@contextmanager
def _data_from(data: Artifact | None) -> Iterator[None]:
    """Points `datasets` at a mirror (a relative name that is a folder is local) and at a cache of our own.

    The cache is keyed by the mirror's content, so that nothing stale is found, and shared by every run: the harness's
    tasks read a hundred small data sets.
    """
    import datasets

    root = Path(os.environ.get("IRIS_CACHE") or Path.home() / ".cache" / "iris")
    before, cache = Path.cwd(), datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = root / "datasets" / (data.digest[:16] if data else "hub")
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if data is not None:
            os.chdir(data.path)
        yield
    finally:
        os.chdir(before)
        datasets.config.HF_DATASETS_CACHE = cache
        if not bars:
            datasets.enable_progress_bars()


def _prepare_ifeval(data: Artifact | None) -> None:
    """IFEval's tokenizer from the mirror where it has one, and a language detector with a fixed seed."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    if data is not None and (folder := data.path / NLTK_FOLDER).is_dir() and str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))
