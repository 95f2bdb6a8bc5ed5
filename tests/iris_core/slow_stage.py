"""A stage for the tests of the launcher: it does what its spec says, slowly. Run as a script, like a real stage."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from iris_core.errors import DataError
from iris_core.progress import Progress
from iris_core.stage import main
from iris_core.store import Outcome, Spec

ENDLESS = [sys.executable, "-c", "import time; time.sleep(1000)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
]


class SlowSpec(Spec):
    stage: ClassVar[str] = "slow"
    action: str


def work(spec: SlowSpec, out: Path) -> Outcome:
    print(f"doing {spec.action}")
    if spec.action == "refuse":
        raise DataError("data.path: no rows: give some")
    if spec.action == "crash":
        raise ZeroDivisionError("of a bug")
    if spec.action == "exhaust":
        raise MemoryError("no more")
    if spec.action == "die":
        subprocess.Popen(ENDLESS, start_new_session=True)
        os.abort()
    if spec.action == "leave":  # ends well, and leaves a process behind
        subprocess.Popen(ENDLESS, start_new_session=True)
        (out / "done").write_text("yes")
        return Outcome(outputs={"done": out / "done"}, metrics={"answer": 42})
    subprocess.Popen(ENDLESS)
    subprocess.Popen(ENDLESS, start_new_session=True)
    subprocess.Popen(STUBBORN, start_new_session=True)
    time.sleep(0.3)  # until the stubborn one ignores SIGTERM
    progress = Progress("slow", total=1000)
    while True:
        progress.advance(1, pid=str(os.getpid()))
        time.sleep(0.1)


if __name__ == "__main__":
    main(SlowSpec, work)
