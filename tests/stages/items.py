"""A stage for tests of items and workers: each item is a file, or what its name says happens to the worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from iris_core.common.errors import ConfigError, DataError, StageFailed
from iris_core.common.progress import Progress
from iris_core.execution.failure import abort
from iris_core.execution.items import run_items
from iris_core.execution.stage import main
from iris_core.store import Artifact, Metrics, Outcome, Spec


class ItemsSpec(Spec):
    stage: ClassVar[str] = "items"
    names: list[str]
    opens: bool = True
    source: Artifact | None = None


class ItemsMetrics(Metrics):
    done: list[str]


def work(spec: ItemsSpec, out: Path) -> Outcome:
    progress, done = Progress("items", total=len(spec.names)), []
    (out / "files").mkdir(exist_ok=True)

    def on_done(name: str) -> None:
        done.append(name)
        progress.advance()

    run_items(spec, out, spec.names, open_engine, on_done)
    return Outcome(outputs={"files": out / "files"}, metrics=ItemsMetrics(done=done))


def open_engine(spec: ItemsSpec, out: Path) -> Callable[[str], None]:
    print("opened")
    if not spec.opens:
        raise ConfigError("engine: cannot be opened: choose another")

    def handle(name: str) -> None:
        tried = out / f"tried-{name}"
        again = tried.exists()
        tried.touch()
        if name.startswith("poison") or (name.startswith("once") and not again):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "engine" and not again:
            abort(StageFailed("items: vLLM's engine was killed by SIGKILL: run again to resume"))
        if name == "refuse":
            raise DataError("data.path: no rows: give some")
        if name == "need":
            raise MemoryError("no more")
        if name == "crash":
            raise ZeroDivisionError("of a bug")
        if name == "endless":
            time.sleep(1000)
        time.sleep(0.2)
        (out / "files" / name).write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")

    return handle


if __name__ == "__main__":
    main(ItemsSpec, work, open_engine)
