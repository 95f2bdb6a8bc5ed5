"""The command line that every stage shares: `python -m iris_core.<stage> --spec spec.json --out DIR`.

Errors end the process with one line that says what to do and the exit code of `iris_core.common.errors`. What a stage forks or
spawns ends with it, however it ends, also where it was started by hand.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pydantic

from iris_core.common import progress
from iris_core.common.disk import full_disk_errors
from iris_core.common.errors import ConfigError, IrisError, OutOfMemoryError
from iris_core.common.markup import plain
from iris_core.common.redaction import redact
from iris_core.execution import supervision, team
from iris_core.store import Outcome, Spec, run_stage

S = TypeVar("S", bound=Spec)

if multiprocessing.current_process().name != "MainProcess":
    # a process that a stage spawned, such as vLLM's engine: it imports the stage's module before it begins
    supervision.end_with_parent(os.getppid())
    supervision.tie_forks()


def main(spec_type: type[S], work: Callable[[S, Path], Outcome]) -> None:
    """Runs one stage from the command line and exits with its code."""
    parser = argparse.ArgumentParser(description=f"Run the stage `{spec_type.stage}`.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with the stage's spec")
    parser.add_argument("--out", type=Path, required=True, help="folder for the output; run again to resume")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Clean("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    supervision.tie_forks()
    out = arguments.out.absolute()
    try:
        spec = read_spec(spec_type, arguments.spec)
        if team.rank():  # rank 0 alone keeps the store
            team.end_with_rank_0()
            with full_disk_errors(out):
                work(spec, out)
            return
        manifest = run_stage(spec, out, work)
    except IrisError as error:
        sys.exit(_report(error))
    except Exception as error:
        if not _is_out_of_memory(error):
            message = redact(str(error))
            progress.emit("error", kind=type(error).__name__, message=message, exit_code=1)
            raise
        sys.exit(_report(OutOfMemoryError(f"{spec_type.stage}: out of memory: use smaller micro-batches ({error})")))
    logging.getLogger(spec_type.stage).info("%s is complete in %s", spec_type.stage, manifest.folder)


def read_spec(spec_type: type[S], path: Path) -> S:
    """The spec in the JSON file at `path`.

    Raises:
        ConfigError: the file is missing or does not fit `spec_type`.
    """
    try:
        return spec_type.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"--spec: there is no file {path}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class _Clean(logging.Formatter):
    """Writes records, tracebacks included, without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(redact(super().format(record)))


def _report(error: IrisError) -> int:
    progress.emit("error", kind=type(error).__name__, message=str(error), exit_code=error.exit_code)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
