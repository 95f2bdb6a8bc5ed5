"""Checks before anything heavy starts: folders, engines, services, the hub, and the experiment's place in the store."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from iris_core import tracking
from iris_core.common.cache import cache_folder
from iris_core.common.errors import ConfigError, EvaluationError, ServiceError
from iris_core.config import Experiment
from iris_core.data import hub, sources
from iris_core.evaluation.benchmarks import BENCHMARKS
from iris_core.evaluation.folder import benchmark_folder
from iris_core.execution import ray_check
from iris_core.generation import backends
from iris_core.pipeline.plan import Prepared, execution_of, prepare_spec, recipe_yaml
from iris_core.store import Store
from iris_core.tracking.model_name import check_registered_model

HOME_FOLDERS = {  # caches below HOME, by the variable that moves them
    "HF_HOME": ".cache/huggingface",
    "IRIS_CACHE": ".cache/iris",
    "PREFECT_HOME": ".prefect",
    "TRITON_CACHE_DIR": ".triton/cache",
    "XDG_CACHE_HOME": ".cache",
}
ANSWER_S = 12.0  # the limit for all services together

Check = Callable[[], object]


def check_services(experiment: Experiment) -> Store:
    """Checks within seconds that what the loop needs is there, without loading any of it.

    Returns:
        The experiment's store.

    Raises:
        StoreError: the store cannot be written, or its disk is full.
        ConfigError: a cache cannot be written, an engine or Ray is missing, or MLflow cannot be used at `tracking.uri`,
            or for `tracking.registered_model`.
        ModelError, DataError, EvaluationError: the model, the data or a benchmark is missing, or the hub refuses it.
        ServiceError: MLflow, the hub or the Ray cluster does not answer, or the cluster is too small.
    """
    store = Store.of(experiment)
    store.check()
    keep_caches(store.root)
    check_caches()
    _check_engines(experiment)
    if experiment.execution.launcher == "ray":
        ray_check.check(execution_of(experiment))
    _check_mirror(experiment)
    at_once({"MLflow": partial(_check_mlflow, experiment), **_on_hub(experiment)})
    return store


def keep_caches(root: Path) -> None:
    """Moves caches into the store `root` if their folder below HOME cannot be written, as in containers.

    Stages inherit the environment variables that say so.
    """
    for variable, folder in HOME_FOLDERS.items():
        if variable not in os.environ and not _can_write(Path.home() / folder):
            os.environ[variable] = str(root / folder)


def check_caches() -> None:
    """Raises ConfigError for a folder of downloads that cannot be written, with the variable that sets it."""
    from huggingface_hub import constants

    for variable, folder in (
        ("HF_HOME", Path(constants.HF_HOME)),
        ("IRIS_CACHE", cache_folder()),
    ):
        try:
            folder.expanduser().mkdir(parents=True, exist_ok=True)
            if not os.access(folder.expanduser(), os.W_OK | os.X_OK):
                raise PermissionError(0, "no permission")
        except OSError as error:
            raise ConfigError(
                f"{variable}: the cache {folder} cannot be written ({error.strerror}): set {variable} to a folder that "
                "can be"
            ) from error


def at_once(checks: dict[str, Check], seconds: float = ANSWER_S) -> None:
    """Runs `checks` side by side and raises the first error in their order.

    Args:
        checks: by the name of what must answer.
        seconds: the limit for all of them together. Without a name server, single requests exceed their own limits.

    Raises:
        ServiceError: one of them does not answer in time.
    """
    found: dict[str, Exception | None] = {}

    def run(name: str, check: Check) -> None:
        try:
            check()
            found[name] = None
        except Exception as error:  # raised below, in the calling thread
            found[name] = error

    threads = {name: threading.Thread(target=run, args=(name, check), daemon=True) for name, check in checks.items()}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        error = found.get(
            name,
            ServiceError(
                f"{name} gives no answer within {seconds:g} s: is there a network? With HF_HUB_OFFLINE=1 the hub is "
                "not asked"
            ),
        )
        if error is not None:
            raise error


def _can_write(folder: Path) -> bool:
    """Whether `folder` can be written, or created if it is missing."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


@contextmanager
def claimed(store: Store, experiment: Experiment, prepared: Prepared) -> Iterator[None]:
    """Reserves the experiment's folder for this model and this data, and until the block ends for this recipe.

    Raises:
        StoreError: the folder belongs to another model or other data, or a run of another recipe is under way.
    """
    asked = prepare_spec(experiment)
    identity = {
        "model": prepared.initial.model.digest,
        "data": asked.data_digest or "",
        "heldout": asked.heldout_digest or "",
    }
    if asked.prompts_digest:
        identity["prompts"] = asked.prompts_digest
    store.claim(identity)
    with store.one_recipe(recipe_yaml(experiment)):
        yield


def _check_mlflow(experiment: Experiment) -> None:
    tracking.check(experiment.tracking_uri)
    check_registered_model(experiment.tracking_uri, experiment.registered_model)


def _check_engines(experiment: Experiment) -> None:
    """The nodes of a Ray cluster have the packages of this machine, but may have GPUs where it has none."""
    here = experiment.execution.launcher == "local"
    engine = backends.resolve("generation.backend", experiment.generation.backend, "transformers")
    if here:
        backends.check_device("generation.backend", engine, "transformers")
    if experiment.evaluation.backend == "vllm":  # "auto" is vLLM on GPUs only
        backends.resolve("evaluation.backend", "vllm", "hf")
        if here:
            backends.check_device("evaluation.backend", "vllm", "hf")


def _check_mirror(experiment: Experiment) -> None:
    """Raises EvaluationError if `evaluation.data_dir` or a data set in it is missing."""
    folder = benchmark_folder(experiment.evaluation.data_dir)
    for name in experiment.evaluation.benchmarks if folder else ():
        assert folder is not None
        if not (folder / BENCHMARKS[name].data).is_dir():
            raise EvaluationError(
                f"evaluation.data_dir: {folder} has no data set {BENCHMARKS[name].data}: add it where there is a "
                f"network (`python -m iris_core.mirror --out {folder} --benchmarks {name}`), or take {name} out of "
                "evaluation.benchmarks"
            )


def _on_hub(experiment: Experiment) -> dict[str, Check]:
    """A check for each name on the hub: the model's, the data's, the benchmarks'."""
    model, data, evaluation = experiment.model, experiment.data, experiment.evaluation
    checks: dict[str, Check] = {}
    if hub.local_folder(model) is None:
        checks[f"the hub for {model.path}"] = partial(hub.resolve_revision, "model", model.path, model.revision)
    checks[f"the hub for {sources.label('data.path', data.path)}"] = partial(sources.pin, data)
    if evaluation.data_dir is None:
        for benchmark in evaluation.benchmarks:
            name = BENCHMARKS[benchmark].data
            checks[f"the hub for {name}"] = partial(check_benchmark, name)
    return checks


def check_benchmark(name: str) -> None:
    """Raises an error if a benchmark's data set is neither on the hub nor, offline, in a cache."""
    built = cache_folder() / "datasets" / "hub" / name.replace("/", "___").lower()
    if not (hub.is_offline() and built.is_dir()):
        hub.resolve_revision("benchmark", name)
