"""A stage for tests of launching: it does what its spec says, in a process like that of a real stage."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from iris_core.common.errors import DataError, ServiceError
from iris_core.common.outages import notify
from iris_core.common.progress import Progress
from iris_core.config import TrainingPart
from iris_core.execution.stage import main
from iris_core.store import Metrics, Outcome, Spec

FITS = 150  # tokens per batch that the action "need" has memory for
ENDLESS = [sys.executable, "-c", "import time; time.sleep(1000)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
]
STRAY = ["sleep", "1000"]
TITLED = "import time; from setproctitle import setproctitle; setproctitle('titled'); time.sleep(1000)"


class SlowSpec(Spec):
    stage: ClassVar[str] = "slow"
    action: str
    training: TrainingPart = TrainingPart(tokens_per_batch=200)


class SlowMetrics(Metrics):
    answer: int


def work(spec: SlowSpec, out: Path) -> Outcome:
    print(f"doing {spec.action}")
    tries = out / "tries"
    tries.write_text(f"{tries.read_text() if tries.exists() else ''}{spec.execution!r}\n")
    if spec.action == "refuse":
        raise DataError("data.path: no rows: give some")
    if spec.action == "crash":
        raise ZeroDivisionError("of a bug")
    if spec.action == "need" and (spec.execution.tokens_per_batch or 200) > FITS:
        raise MemoryError("no more")
    if spec.action == "reconnect" and len(tries.read_text().splitlines()) == 1:
        raise ServiceError("no answer: try later")
    if spec.action == "die":
        subprocess.Popen(ENDLESS, start_new_session=True)
        os.abort()
    if spec.action == "wait":
        notify("waiting for the other")
    if spec.action == "endless":
        go_on()
    if spec.action == "engines":
        sample()
    subprocess.Popen(ENDLESS, start_new_session=True)  # the stage succeeds, and leaves a process behind
    warnings = ["mind <this>", "and [that]"] if spec.action == "warn" else []
    progress = Progress("slow", total=2)
    for _ in range(2):
        progress.advance(1, loss=0.5)
    return Outcome(outputs={"tries": tries}, metrics=SlowMetrics(answer=42, warnings=warnings))


def go_on() -> None:
    """Runs forever with three child processes: two in sessions of their own, one of which ignores SIGTERM."""
    subprocess.Popen(ENDLESS)
    subprocess.Popen(ENDLESS, start_new_session=True)
    subprocess.Popen(STUBBORN, start_new_session=True)
    time.sleep(0.3)  # until the stubborn one ignores SIGTERM
    report()


def sample() -> None:
    """Runs forever with processes like vLLM's, forked and spawned, one with a title, and one without an environment."""
    for method in ("fork", "spawn"):
        multiprocessing.get_context(method).Process(target=engine, daemon=True).start()
    subprocess.Popen([sys.executable, "-c", TITLED], start_new_session=True)
    subprocess.Popen(["env", "-i", "setsid", *STRAY])
    report()


def engine() -> None:
    """Two processes in a session of their own, with titles that overwrite the start of their environment."""
    from setproctitle import setproctitle

    os.setsid()
    name = "Worker" if os.fork() == 0 else "EngineCore"
    setproctitle(f"VLLM::{name}")
    time.sleep(1000)


def report() -> None:
    """Reports progress forever."""
    progress = Progress("slow", total=1000)
    while True:
        progress.advance(1, pid=str(os.getpid()))
        time.sleep(0.1)


if __name__ == "__main__":
    main(SlowSpec, work)
