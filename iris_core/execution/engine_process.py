"""vLLM's engine as a process of its own, as on GPUs: a stage whose engine is gone ends instead of waiting for answers.

vLLM's synchronous client waits for ever for an engine that was killed while it sampled, by the out-of-memory killer say.

    @watched("generate")
    def sample(): ...  # opens the engine and uses it; where the engine runs inside the stage there is nothing to watch
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from iris_core.common import progress
from iris_core.common.errors import StageFailed
from iris_core.execution.launch import signal_name

ENGINE = "EngineCore"  # how names of its processes begin
LOOK_EVERY_S = 0.2
GRACE_S = 3.0  # for vLLM to raise an error of its own, and to end an engine that nobody needs any longer


@contextmanager
def watched(stage: str) -> Iterator[None]:
    """Ends this process with a StageFailed, which a retry can help, if an engine ends that was started inside.

    Raises:
        StageFailed: the engine was killed, and vLLM itself found out.
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
            error = _failed(stage, code)
            progress.emit("error", kind="StageFailed", message=str(error), exit_code=error.exit_code)
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)


def _exit_code(engines: set[BaseProcess]) -> int | None:
    """The exit code of an engine that has ended; None while all of them live."""
    codes = (process.exitcode for process in tuple(engines))
    return next((code for code in codes if code is not None), None)


def _failed(stage: str, code: int) -> StageFailed:
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return StageFailed(f"{stage}: vLLM's engine {how}: run again to resume")
