"""lm-evaluation-harness behind three functions: load the tasks, open the model, score a benchmark.

One model object serves every benchmark and the held-out prompts. Task definitions are the harness's own, unmodified.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iris_core.common.cache import cache_folder
from iris_core.common.digest import json_digest
from iris_core.common.errors import EvaluationError, IrisError, ServiceError
from iris_core.data import hub
from iris_core.data.templates import Template
from iris_core.evaluation.benchmarks import BENCHMARKS, NLTK_FOLDER, Benchmark, data_sets, task_manager
from iris_core.evaluation.mirror import in_mirror
from iris_core.execution import devices
from iris_core.generation import backends
from iris_core.generation.vllm_settings import vllm_settings
from iris_core.modeling import loading
from iris_core.modeling.patches.harness_bars import hidden_task_bars
from iris_core.modeling.patches.harness_data import data_sets_in
from iris_core.modeling.patches.vllm_environment import set_vllm_environment
from iris_core.store import Artifact, Execution, Policy

FEWSHOT_SEED = 1234  # the harness's default, for every experiment: it chooses the examples of a prompt
LOAD_SEED = 0  # GPQA shuffles its choices while it is loaded
MAX_LENGTH = 8192  # tokens, longer than any prompt of the ten; bounds vLLM's memory

Tasks = dict[str, Any]
"""What the harness's task manager loads for a benchmark: "tasks" and "groups", each by name."""


@dataclass(frozen=True)
class Result:
    """A benchmark's result.

    Attributes:
        value: the metric, between 0 and 1.
        stderr: its standard error; None with fewer than two items.
        items: the metric of each item, in the harness's order, for comparisons paired by item.
        items_digest: SHA-256 of the items' content; it tells data sets apart that have no pinned revision.
        task_version: the harness's version of the task.
        recorded: other results, by "metric,filter".
    """

    value: float
    stderr: float | None
    items: list[float]
    items_digest: str
    task_version: Any
    recorded: dict[str, float]


def resolve_backend(name: str, execution: Execution) -> str:
    """ "vllm" or "hf"; "auto" is vLLM on GPUs and transformers on CPUs, where it is faster and starts at once.

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    if name == "auto" and not devices.on_gpus(execution):
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
    with data_sets_in(data.path if data else None, _cache(data)):
        for name in names:
            random.seed(LOAD_SEED)
            try:
                loaded[name] = manager.load([BENCHMARKS[name].task])
            except Exception as error:  # datasets and the harness raise many kinds
                raise _data_error(name, data, error) from error
    return loaded


def count(tasks: Tasks, limit: int | None) -> int:
    """How many items the `tasks` of a benchmark have, at most `limit` a task."""
    sizes = (len(task.task_docs) for task in tasks["tasks"].values())
    return sum(size if limit is None else min(size, limit) for size in sizes)


def open_model(
    policy: Policy,
    backend: str,
    dtype: str,
    *,
    template: Template,
    stop_token_ids: list[int],
    trust_remote_code: bool,
    batch_size: int,
    tensor_parallel: int = 1,
) -> Any:
    """The harness's model for `policy`, with shared prefixes: by vLLM, or by transformers.

    Args:
        policy: what is scored.
        backend: "vllm" or "hf".
        dtype: "bfloat16" or "float32".
        template: renders the prompts of benchmarks that are asked as a chat.
        stop_token_ids: tokens that end what the model generates.
        trust_remote_code: run code from the model's folder.
        batch_size: prompts that generate together.
        tensor_parallel: devices that hold vLLM's engine together.
    """
    if backend == "vllm":
        opened = _open_vllm(policy, dtype, trust_remote_code, tensor_parallel)
    else:
        opened = _open_transformers(policy, dtype, template, trust_remote_code, batch_size)
    opened.template, opened.stop_token_ids = template, stop_token_ids
    return opened


def _open_transformers(policy: Policy, dtype: str, template: Template, trust_remote_code: bool, batch_size: int) -> Any:
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
        benchmark: the benchmark.
        tasks: its tasks, from `load_tasks`.
        limit: items per task; None: all.
        apply_chat_template: render prompts by the model's chat template, each example a turn.
        max_gen_tokens: most tokens that an answer may have; None: as the task says.
    """
    import lm_eval.evaluator

    random.seed(LOAD_SEED)
    np.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)
    for task in tasks["tasks"].values():
        _configure(task, benchmark.shots, max_gen_tokens, lm.max_gen_toks)
    with hidden_task_bars():
        results = lm_eval.evaluator.evaluate(
            lm,
            tasks,
            limit=limit,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
        )
    return _result(benchmark, results)


def _open_vllm(policy: Policy, dtype: str, trust_remote_code: bool, tensor_parallel: int) -> Any:
    backends.check_device("evaluation.backend", "vllm", "hf")
    gpu = torch.cuda.is_available()
    set_vllm_environment(gpu=gpu)
    from iris_core.evaluation.prefix_vllm import PrefixVLLM

    config = loading.load_config(policy.model.path, trust_remote_code).get_text_config()
    adapter = policy.adapter.path if policy.adapter else None
    settings = vllm_settings(
        dtype,
        min(getattr(config, "max_position_embeddings", MAX_LENGTH), MAX_LENGTH),
        gpu=gpu,
        samples=False,
        adapter=adapter,
        trust_remote_code=trust_remote_code,
        tensor_parallel=tensor_parallel,
    )
    return PrefixVLLM(str(policy.model.path), lora_local_path=str(adapter) if adapter else None, **settings)


def _configure(task: Any, shots: int, max_gen_tokens: int | None, default_tokens: int) -> None:
    """Sets on a task what the harness's `simple_evaluate` would set for these arguments."""
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
    """Checks that every data set has a folder in the mirror; one without would come from the hub.

    Raises:
        EvaluationError: the first that has none.
    """
    for name in names:
        for item in data_sets([name]):
            if not (folder / item.path).is_dir():
                raise EvaluationError(
                    f"evaluation.data_dir: {folder} has no data set {item.path}. {_remedy(name, folder)}"
                )


def _data_error(name: str, data: Artifact | None, error: Exception) -> IrisError:
    """The error that says which data set of benchmark `name` cannot be read, and the remedy."""
    needed = data_sets([name])
    if data is not None:
        missing = next((item for item in needed if not in_mirror(data.path, item)), needed[0])
        source = f"data set {missing.path}, config {missing.config or 'default'}, splits {', '.join(missing.splits)}"
        return EvaluationError(
            f"evaluation.data_dir: {name} cannot read {data.path} ({source}): {error}. {_remedy(name, data.path)}"
        )
    message = f"evaluation: {name} needs {needed[0].path}, which cannot be loaded from the hub: {error}. "
    remedy = "Set evaluation.data_dir to a mirror (`python -m iris_core.mirror --out DIR` makes one) or to `miniature`"
    return (
        ServiceError(message + remedy)
        if isinstance(error, ConnectionError) and not hub.is_offline()
        else EvaluationError(message + remedy)
    )


def _remedy(name: str, folder: Path) -> str:
    return f"Add it where there is a network: `python -m iris_core.mirror --out {folder} --benchmarks {name}`"


def _cache(data: Artifact | None) -> Path:
    """The folder for prepared data sets, shared by all runs: the tasks read a hundred small ones.

    Its name follows the mirror's content: data of another mirror is never found in it.
    """
    return cache_folder() / "datasets" / (data.digest[:16] if data else "hub")


def _prepare_ifeval(data: Artifact | None) -> None:
    """Gives IFEval the sentence tokenizer of the mirror, if it has one, and its language detector a fixed seed."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    if data is not None and (folder := data.path / NLTK_FOLDER).is_dir() and str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))
