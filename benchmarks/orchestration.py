"""What the flow adds to the stages: `iris run` against the same specs run from a shell, one after another.

The model is a toy, so that the flow is a large share of the time. The time from the start of the first stage's work to
the end of the last one's is compared; manifests of both runs hold it. The time that `iris run` needs before and after
(its Prefect server, the report) is reported separately.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.interleaved import Rounds, RunFailed, alone
from benchmarks.table import Line, Result, spread

LIMIT_S, SHARE = 5.0, 0.02
# What is compared, the initial model's registration first; `publish` needs the run in MLflow that the flow made.
STAGES = ("prepare", "register", "generate", "train", "evaluate", "schedule", "register")


class Ran(NamedTuple):
    """Seconds of a whole command, and from the start of its first stage to the end of its last one."""

    total: float
    span: float


def measure(repeats: int) -> Result:
    """The line `orchestration`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        alone(make_inputs, root=root)
        rounds = []
        for repetition in range(repeats):
            place = root / str(repetition)
            place.mkdir()
            through = flow(root, place)
            rounds.append((through, by_hand(place / "store", place / "hand")))
    added = [(through.span - hand.span) / (len(STAGES) - 1) for through, hand in rounds]
    around = [through.total - through.span for through, _ in rounds]
    spans = [[both[run].span for both in rounds] for run in (0, 1)]
    lines = [
        Line("orchestration: the stages of an iteration, through the flow", "s", spans[0], spans[1]),
        Line(
            "orchestration: added to a stage (peer: the limit)",
            "s",
            added,
            [LIMIT_S] * repeats,
            "≤",
            1.0,
        ),
    ]
    enough = median(added) * (len(STAGES) - 1) / SHARE / 60
    text = (
        f"A toy model, so that stages are short: {len(STAGES)} stages, each a process, as in `iris run`. The flow adds "
        f"{spread(added)} s to a stage. Prefect's server, the command itself and the report take {spread(around)} s, "
        f"once per run, for any number of iterations. The flow's share of an iteration is at most {SHARE:.0%} where an "
        f"iteration takes at least {max(enough, 0):.1f} minutes."
    )
    return Result("orchestration", lines, text)


def make_inputs(rounds: Rounds, root: Path) -> None:
    """Writes a toy model, annotated pairs and a recipe."""
    import yaml

    from tests.conftest import build_model

    build_model(root / "model")
    rows = [
        {"prompt": f"What is {a} + {b}?", "response": f"It is {a + b}.\nAnswer: {a + b}"}
        for a in range(6)
        for b in range(4)
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "orchestration",
        "iterations": 1,
        "model": {"path": str(root / "model"), "dtype": "float32"},
        "data": {"path": str(root / "pairs.jsonl"), "heldout": 4, "answer_pattern": "Answer: (.+)"},
        "generation": {"backend": "transformers", "max_new_tokens": 16},
        "training": {"batch_size": 4, "epochs": 1, "learning_rate": 1e-3},
        "evaluation": {
            "benchmarks": ["winogrande"],
            "data_dir": "miniature",
            "backend": "hf",
            "initial": False,
        },
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def flow(root: Path, place: Path) -> Ran:
    """One iteration by `iris run`, its store in `place`."""
    recipe, store = str(root / "recipe.yaml"), place / "store"
    command = ["-m", "deployments.cli", "run", recipe, "--set", f"store={store}"]
    total = _run(command)
    return Ran(total, _span(_stages(store)))


def by_hand(store: Path, out: Path) -> Ran:
    """Runs the specs of the stages in `store` again, in their order, each by its command."""
    tracking = f"sqlite:///{out / 'mlflow.db'}"
    out.mkdir()
    _run(["-c", f"from iris_core import tracking; tracking.check({tracking!r})"])
    stages = _stages(store)
    started = time.perf_counter()
    for stage in stages:
        spec = json.loads((stage / "spec.json").read_text())
        if "tracking_uri" in spec:
            spec["tracking_uri"] = tracking
        request = out / f"{stage.name}.json"
        request.write_text(json.dumps(spec))
        module = f"iris_core.{_kind(stage)}"
        _run(["-m", module, "--spec", str(request), "--out", str(out / stage.name)])
    total = time.perf_counter() - started
    return Ran(total, _span([out / stage.name for stage in stages]))


def _stages(store: Path) -> list[Path]:
    """The folders of the stages that are compared, in the order in which they ran.

    Raises:
        RunFailed: there are others than expected.
    """
    found = [path for path in (store / "objects").iterdir() if _kind(path) in STAGES]
    if sorted(map(_kind, found)) != sorted(STAGES):
        raise RunFailed(f"stages in the store: {sorted(map(_kind, found))}, expected: {sorted(STAGES)}")
    return sorted(found, key=_started)


def _kind(stage: Path) -> str:
    return stage.name.partition("-")[0]


def _run(command: list[str]) -> float:
    """Runs Python with `command` in the environment of a stage; its wall time.

    Raises:
        RunFailed: it failed.
    """
    from iris_core.execution.launch import CPU_SETTINGS, TELEMETRY_OFF

    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**TELEMETRY_OFF, **CPU_SETTINGS, **own}
    started = time.perf_counter()
    run = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RunFailed(f"{' '.join(command)}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}")
    return time.perf_counter() - started


def _span(stages: list[Path]) -> float:
    manifests = [_manifest(stage) for stage in stages]
    begun = [_started(stage) for stage in stages]
    ended = [start + found["seconds"] for start, found in zip(begun, manifests, strict=True)]
    return max(ended) - min(begun)


def _started(stage: Path) -> float:
    return datetime.datetime.fromisoformat(_manifest(stage)["started"]).timestamp()


def _manifest(stage: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((stage / "manifest.json").read_text())
    return content
