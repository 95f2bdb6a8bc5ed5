"""What every stage task shares: reuse before launch, progress, log lines, and retries where they can help.

The work happens in `python -m iris_core.<stage>`, a subprocess; this process never imports torch. If the store has the
output already, the task ends in the state `Reused`. Only small JSON passes between tasks: `Finished`.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, Protocol, Self, cast
from uuid import UUID

import httpx
from prefect import Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.logging import get_run_logger
from prefect.serializers import JSONSerializer
from prefect.states import Completed, State
from prefect.tasks import exponential_backoff

from iris_core.common.errors import IrisError, OutOfMemoryError, ServiceError
from iris_core.common.files import read_sealed, seal, write_atomic
from iris_core.common.markup import markdown, one_line, plain
from iris_core.common.progress import Advance, Notice
from iris_core.common.redaction import redact
from iris_core.common.strict import Strict
from iris_core.config import Experiment
from iris_core.execution.launch import launch
from iris_core.execution.logs import LogFile
from iris_core.pipeline.specs import EVALUATION_BATCH, EvaluateSpec
from iris_core.store import Manifest, Metrics, Spec, Store, completed, require_manifest, tidy
from iris_core.store.folders import EXECUTION

UPDATE_EVERY_S = 1.0
LEVELS = {
    "DEBUG": logging.DEBUG,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
}


class Finished(Strict):
    """What passes between tasks: where a stage's output lies, and its metrics. Its manifest has the rest."""

    stage: str
    folder: Path
    key: str
    seconds: float
    reused: bool
    metrics: dict[str, Any]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The short form of a manifest."""
        return cls(**{name: getattr(manifest, name) for name in cls.model_fields})

    def manifest(self) -> Manifest:
        """The whole manifest.

        Raises:
            StoreError: it is no longer there.
        """
        return require_manifest(self.folder)


P = ParamSpec("P")
Result = Finished | State[Finished]


class Watcher(Protocol):
    """Is called with what the stages of this process do, such as the progress display of the terminal."""

    def started(self, store: Store, place: str) -> None:
        """The stage at `place` ("iteration-0/train") of the experiment in `store` was launched."""

    def progressed(self, place: str, event: Advance) -> None:
        """It reported progress."""

    def noticed(self, place: str, text: str) -> None:
        """It reported what it waits for."""

    def ended(self, store: Store, place: str, finished: Finished | None) -> None:
        """It completed, or failed (None)."""


_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Stages that run inside report to `watcher`."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def stage_task(stage: str, gpu: bool = False) -> Callable[[Callable[P, Result]], Callable[P, Finished]]:
    """Turns a function that performs a stage into a Prefect task. Calling it gives what the stage finished.

    Args:
        stage: its name.
        gpu: it uses the accelerator; the tag `gpu` lets a concurrency limit count such tasks.
    """

    def run_name(parameters: dict[str, Any]) -> str:
        return " · ".join([stage, *_where(parameters)])

    def decorate(function: Callable[P, Result]) -> Callable[P, Finished]:
        made = task(
            name=stage,
            task_run_name=run_name,  # type: ignore[arg-type]  # Prefect's protocol has a class method
            tags=["gpu"] if gpu else None,
            retries=3,
            retry_delay_seconds=exponential_backoff(backoff_factor=5),
            retry_jitter_factor=0.2,
            retry_condition_fn=can_help,
            cache_policy=NO_CACHE,  # the store knows what is done, by content
            persist_result=True,
            result_serializer=JSONSerializer(),
        )(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Finished:
            result = made(*args, **kwargs)
            return result.result() if isinstance(result, State) else result

        return run

    return decorate


def can_help(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the stage can succeed when it runs again without a change by the user."""
    return isinstance(state.data, IrisError) and state.data.retryable


def perform(spec: Spec, experiment: Experiment, place: str) -> Result:
    """Takes the output of `spec` from the store, or launches the stage; links it at `place`.

    Args:
        spec: the stage's spec.
        experiment: the experiment with the store.
        place: where in the experiment's folder the output is linked, as "iteration-0/train".

    Raises:
        IrisError: the stage failed.
    """
    store = Store.of(experiment)
    folder = store.folder(spec)
    if manifest := _found(spec, folder):
        tidy(manifest)
        store.link(place, folder)
        finished = Finished.of(manifest)
        _warn(place, finished)
        _tell_end(store, place, finished)
        return Completed(name="Reused", message=f"{folder} has it already", data=finished)
    finished = Finished.of(_launch(spec, store, place))
    store.link(place, folder)
    _warn(place, finished)
    _tell_end(store, place, finished)
    return finished


def _found(spec: Spec, folder: Path) -> Manifest | None:
    """What the store has of `spec`. Also None if a service does not answer: the stage then waits for it."""
    try:
        return completed(folder, spec)
    except ServiceError:
        return None


def log_file(store: Store, place: str) -> Path:
    """The log file of the stage at `place`."""
    return store.home / "logs" / f"{place.replace('/', '-')}.log"


def artifact_key(experiment: str, name: str) -> str:
    """The key of an experiment's artifact in the Prefect UI: lower case, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", f"{experiment}-{name}".lower()).strip("-")


def describe(event: Advance) -> str:
    """A progress event as text: "3 of 40, loss 0.61, tokens per second 812"."""
    numbers = (
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in event.values.items()
    )
    return one_line(redact(", ".join([f"{event.done} of {event.total}", *numbers])))


def _where(parameters: dict[str, Any]) -> list[str]:
    if "state" in parameters:
        return [f"iteration {parameters['state'].iteration}"]
    if "iteration" in parameters:
        iteration = parameters["iteration"]
        return ["initial model" if iteration is None else f"iteration {iteration}"]
    return []


def _warn(place: str, finished: Finished) -> None:
    """Logs a stage's warnings, also those of a reused stage."""
    for text in Metrics.of(finished).warnings:
        get_run_logger().warning("%s: %s", place, one_line(redact(text)))


def _tell_end(store: Store, place: str, finished: Finished | None) -> None:
    if watcher := _WATCHER.get():
        watcher.ended(store, place, finished)


def _launch(spec: Spec, store: Store, place: str) -> Manifest:
    folder, log, bar = store.folder(spec), log_file(store, place), ProgressArtifact(store, place)
    logger, watcher = get_run_logger(), _WATCHER.get()
    log.parent.mkdir(parents=True, exist_ok=True)
    if watcher:
        watcher.started(store, place)

    def on_progress(event: Advance | Notice) -> None:
        if isinstance(event, Advance):
            bar.move(event)
            if watcher:
                watcher.progressed(place, event)
        elif watcher:
            watcher.noticed(place, event.message)

    try:
        with closing(LogFile(log)) as file:

            def on_log(line: str) -> None:  # called on another thread
                text = plain(redact(line))
                file.write(text)
                logger.log(_level(text), "%s", text)

            manifest = launch(_eased(spec, folder), folder, on_progress, on_log)
    except BaseException as error:
        if isinstance(error, OutOfMemoryError):
            _ease(spec, folder)
        _tell_end(store, place, None)
        raise
    bar.end()
    return manifest


def _level(line: str) -> int:
    """The level of a log line of a stage, which is named near its start."""
    found = re.search(r"\b(DEBUG|WARNING|ERROR|CRITICAL)\b", line[:60])
    return LEVELS[found[1]] if found else logging.INFO


def _eased(spec: Spec, folder: Path) -> Spec:
    """`spec` with the smaller micro-batch that an earlier try asked for when it ran out of memory."""
    wish = read_sealed(folder / EXECUTION) or {}  # a damaged file costs one more try
    return spec.model_copy(update={"execution": spec.execution.model_copy(update=wish)})


def _ease(spec: Spec, folder: Path) -> None:
    """Asks the next try for half the micro-batch. The file lies beside the spec, so that later runs use it, too."""
    if isinstance(spec, EvaluateSpec):
        name, first = "batch_size", EVALUATION_BATCH
    elif training := getattr(spec, "training", None):
        name, first = "tokens_per_batch", training.tokens_per_batch
    else:
        return
    size = getattr(_eased(spec, folder).execution, name) or first
    write_atomic(folder / EXECUTION, seal({name: max(1, size // 2)}))


class ProgressArtifact:
    """The stage's bar in the Prefect UI. It moves once a second at most; errors of Prefect stop no stage."""

    def __init__(self, store: Store, place: str):
        self.key = artifact_key(store.home.name, f"{place}-progress")
        self.id: UUID | None = None
        self.moved = 0.0
        self.event: Advance | None = None

    def move(self, event: Advance) -> None:
        """Moves the bar to what `event` says."""
        self.event = event
        if time.monotonic() - self.moved > UPDATE_EVERY_S:
            self._show(100 * event.done / max(1, event.total))

    def end(self) -> None:
        """Moves the bar to the end, if it ever moved."""
        if self.event is not None:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        assert self.event is not None
        self.moved = time.monotonic()
        text = markdown(f"{self.event.stage}: {describe(self.event)}")
        try:
            if self.id is None:
                self.id = cast(UUID, create_progress_artifact(percent, self.key, text))
            else:
                update_progress_artifact(self.id, percent, text)
        except httpx.HTTPError as error:
            get_run_logger().warning("cannot move the progress bar: %s", error)
