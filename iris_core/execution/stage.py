"""The command line that every stage shares: `python -m iris_core.<stage> --spec spec.json --out DIR`.

An error ends the process with one line that says what to do, and with the exit code of `iris_core.common.errors`. What
a stage forks or spawns ends with it, whatever ends the stage, also when it was started by hand.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import pydantic

from iris_core.common import mirrors, progress
from iris_core.common.disk import full_disk_errors
from iris_core.common.errors import ConfigError, IrisError, OutOfMemoryError
from iris_core.common.markup import plain
from iris_core.common.redaction import redact
from iris_core.config.explain import explain
from iris_core.execution import distributed, exchange, logs, supervision
from iris_core.execution.failure import report
from iris_core.execution.item_worker import serve
from iris_core.store import Outcome, Spec, run_stage
from iris_core.store.inputs import fetch_inputs, localized

S = TypeVar("S", bound=Spec)

if multiprocessing.current_process().name != "MainProcess":
    # a process that a stage spawned, such as vLLM's engine: it imports the stage's module before its own work
    supervision.end_with_parent(os.getppid())
    supervision.end_forks_with_parent()


def main(
    spec_type: type[S],
    work: Callable[[S, Path], Outcome],
    open_engine: Callable[[S, Path], Callable[[str], None]] | None = None,
) -> None:
    """Runs one stage from the command line and exits with its code.

    Args:
        spec_type: the class of its specs.
        work: the stage's function.
        open_engine: of a stage that has items, as `run_items` takes it; its command line is also that of a worker.
    """
    gc.freeze()  # what was imported stays: no collection looks through it
    gc.enable()  # off while a stage imports: see `iris_core.modeling.patches.imports`
    arguments = _arguments(spec_type.stage)
    supervision.end_forks_with_parent()
    out = mirrors.here(arguments.out.absolute())
    try:
        distributed.check(spec_type.stage, allowed=spec_type.has_ranks)
        _log_to_stderr(f"rank {distributed.rank()}" if distributed.rank() else arguments.name or "")
        spec = localized(read_spec(spec_type, arguments.spec))
        with full_disk_errors(out):
            if arguments.items and open_engine:  # who starts a worker sees to its inputs
                serve(spec.stage, arguments.items, lambda: open_engine(spec, out))
            else:
                _run(spec, out, work)
    except IrisError as error:
        _end(error)
    except Exception as error:
        if _is_out_of_memory(error):
            _end(OutOfMemoryError(f"{spec_type.stage}: out of memory: use smaller micro-batches ({error})"))
        progress.emit("error", kind=type(error).__name__, message=redact(str(error)), exit_code=1)
        if not distributed.joined():
            raise
        traceback.print_exc()
        _end_rank(1)


def _end(error: IrisError) -> NoReturn:
    code = report(error)
    if distributed.joined():
        _end_rank(code)
    sys.exit(code)


def _end_rank(code: int) -> NoReturn:
    """Ends a rank at once after an error: threads of gloo may abort an interpreter that ends by itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _arguments(stage: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"python -m iris_core.{stage}", description=f"Run the stage `{stage}`.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with the stage's spec")
    parser.add_argument("--out", type=Path, required=True, help="folder for the output; run again to resume")
    parser.add_argument("--items", type=Path, help=argparse.SUPPRESS)  # a worker's pipe
    parser.add_argument("--name", help=argparse.SUPPRESS)  # a worker's
    return parser.parse_args()


def _log_to_stderr(name: str) -> None:
    """Sends log records to the error output. What a process with a name prints begins with it.

    One of several processes with one log writes whole lines: `print` writes a line and its end one after the other.
    """
    if name or distributed.world_size() > 1:
        sys.stdout, sys.stderr = logs.named(name, sys.stdout), logs.named(name, sys.stderr)
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Clean("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def _run(spec: S, out: Path, work: Callable[[S, Path], Outcome]) -> None:
    if distributed.world_size() > 1:
        supervision.end_with_parent(os.getppid())  # torchrun's agent

    def all_work() -> Outcome:
        distributed.together(partial(_fetch_inputs, spec))
        exchange.machines_apart(out)  # is refused here where they may not be
        outcome = work(spec, out)
        exchange.forget(out)
        return outcome

    distributed.all_ranks(lambda work_of_all: run_stage(spec, out, lambda *_: work_of_all()), all_work)
    if distributed.rank() == 0:
        logging.getLogger(spec.stage).info("%s is complete in %s", spec.stage, out)


def _fetch_inputs(spec: Spec) -> None:
    """Once on each machine."""
    if distributed.local_rank() == 0:
        fetch_inputs(spec)


def read_spec(spec_type: type[S], path: Path) -> S:
    """The spec in the JSON file at `path`.

    Raises:
        ConfigError: the file is missing, cannot be read or does not fit `spec_type`.
    """
    try:
        return spec_type.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"--spec: there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--spec: {path} cannot be read ({error}): give a stage's spec.json") from error
    except pydantic.ValidationError as error:
        first, *_ = explain(error, spec_type, lambda location: str(path)).splitlines()
        raise ConfigError(first) from error


class _Clean(logging.Formatter):
    """Writes records, tracebacks included, without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(redact(super().format(record)))


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
