"""Ends a stage when vLLM's engine, a process of its own on GPUs, has ended: the stage would wait for it forever.

vLLM's synchronous client goes on waiting when the engine is killed while it samples, for example where memory runs out.

    @watched("generate")
    def sample(): ...  # opens the engine and uses it; an engine inside the stage's process needs no watching
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from iris_core.common.errors import StageFailed
from iris_core.execution.failure import abort
from iris_core.execution.supervision import how_ended

ENGINE = "EngineCore"  # how the names of its processes begin
LOOK_EVERY_S = 0.2
GRACE_S = 3.0  # for vLLM to raise an error of its own, and to end an engine that is no longer needed


@contextmanager
def watched(stage: str) -> Iterator[None]:
    """Ends this process with a retryable StageFailed if an engine that was started inside the block ends.

    Raises:
        StageFailed: the engine was killed, and vLLM itself noticed.
    """
    engines: set[BaseProcess] = set()
    over = threading.Event()
    threading.Thread(target=_watch, args=(stage, engines, over), daemon=True).start()
    try:
        yield
    except Exception as error:
        if (code := _exit_code(engines)) is not None and code < 0:
            raise _failed(stage, code) from error
        raise
    finally:
        over.set()


def _watch(stage: str, engines: set[BaseProcess], over: threading.Event) -> None:
    while not over.wait(LOOK_EVERY_S):
        found = multiprocessing.active_children()
        engines.update(process for process in found if process.name.startswith(ENGINE))
        if (code := _exit_code(engines)) is not None and not over.wait(GRACE_S):
            abort(_failed(stage, code))


def _exit_code(engines: set[BaseProcess]) -> int | None:
    """The exit code of an engine that has ended; None while all of them live."""
    codes = (process.exitcode for process in tuple(engines))
    return next((code for code in codes if code is not None), None)


def _failed(stage: str, code: int) -> StageFailed:
    return StageFailed(f"{stage}: vLLM's engine {how_ended(code)}: run again to resume")
