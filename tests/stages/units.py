"""A stage for tests of resuming: it writes units, one after the other, and checkpoints in `work`.

TEST_GATES names a folder: unit 3 waits there for as long as there is a file `3`.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import ClassVar

from iris_core.execution.stage import main
from iris_core.store import Artifact, Metrics, Outcome, Spec, lease
from iris_core.store.folders import WORK
from iris_core.store.units import Units

lease.SECONDS = float(os.environ.get("TEST_LEASE_S", lease.SECONDS))
GATES = Path(os.environ.get("TEST_GATES", "/nowhere"))


class UnitsSpec(Spec):
    stage: ClassVar[str] = "units"
    source: Artifact
    count: int = 4
    size: int = 1000  # bytes of each unit
    pause: float = 0.0  # seconds before each unit


class UnitsMetrics(Metrics):
    written: list[int]  # units that this process has written


def work(spec: UnitsSpec, out: Path) -> Outcome:
    (out / WORK).mkdir(exist_ok=True)
    seed = spec.source.intact().read_bytes()
    units, written = Units(out, spec.key()), []
    for i in range(spec.count):
        path, checkpoint = out / "parts" / f"part-{i}.bin", out / WORK / f"checkpoint-{i}"
        if not units.holds(path):
            time.sleep(spec.pause)
            while (GATES / str(i)).exists():
                time.sleep(0.05)
            path.parent.mkdir(exist_ok=True)
            with units.writing(path) as place:
                place.write_bytes(content(seed, i, spec.size))
            with units.writing(checkpoint) as place:
                (place / "inner").mkdir(parents=True)
                (place / "inner" / "state").write_text(str(i))
            units.remove(out / WORK / f"checkpoint-{i - 2}")
            written.append(i)
    return Outcome(outputs={"parts": out / "parts"}, metrics=UnitsMetrics(written=written))


def content(seed: bytes, i: int, size: int) -> bytes:
    """The content of part `i`: random, but always the same."""
    return hashlib.shake_256(seed + bytes([i])).digest(size)


if __name__ == "__main__":
    main(UnitsSpec, work)
