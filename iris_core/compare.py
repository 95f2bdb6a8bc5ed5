"""Stage `compare`: objectives side by side, each with several seeds, on one model and data.

python -m iris_core.compare --spec spec.json --out DIR
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from iris_core.modeling.patches.imports import begin_imports

if __name__ == "__main__":
    begin_imports()

from iris_core import tracking
from iris_core.common.files import write_atomic
from iris_core.execution.stage import main
from iris_core.pipeline.metrics import CompareMetrics
from iris_core.pipeline.specs import CompareSpec
from iris_core.reporting.comparison import markdown, render
from iris_core.reporting.trajectories import Trajectory, trajectories
from iris_core.store import Outcome
from iris_core.tracking.runs import get_or_create_experiment, get_or_create_run, log_points, points


def compare(spec: CompareSpec, out: Path) -> Outcome:
    """Reads the manifests of the loops, writes the page and its data, and logs both to MLflow."""
    found = trajectories(spec.members)
    data = [trajectory.model_dump(mode="json") for trajectory in found]
    write_atomic(out / "comparison.json", json.dumps(data, indent=1, ensure_ascii=False))
    write_atomic(out / "comparison.html", render(spec.experiment, found))
    run_id = log_comparison(spec, found, out)
    return Outcome(
        outputs={"page": out / "comparison.html", "comparison": out / "comparison.json"},
        metrics=CompareMetrics(run_id=run_id, table=markdown(found)),
    )


def log_comparison(spec: CompareSpec, found: Sequence[Trajectory], out: Path) -> str:
    """The comparison as a run of the MLflow experiment of its name; returns the run's id."""
    client = tracking.connect(spec.tracking_uri, spec.execution.patience)
    now = int(time.time() * 1000)
    with tracking.service_errors(spec.tracking_uri):
        folder = tracking.artifact_folder(spec.tracking_uri, otherwise=out)
        experiment = get_or_create_experiment(client, spec.experiment, folder)
        tags = {"iris.role": "comparison", "iris.key": spec.key()}
        run_id = get_or_create_run(client, experiment, "comparison", tags, now)
        for trajectory in found:
            for name, step, value in _steps(trajectory):
                log_points(client, run_id, points({f"{trajectory.objective}/{name}": value}, step, now))
        for name in ("comparison.html", "comparison.json"):
            client.log_artifact(run_id, str(out / name))
        client.set_terminated(run_id, "FINISHED", now)
    return run_id


def _steps(trajectory: Trajectory) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of each number of a trajectory. The initial model, step 0, may have no exact match."""
    for step, value in enumerate(trajectory.logprob):
        yield "logprob", step, value.value
    unscored = len(trajectory.logprob) - len(trajectory.exact_match)
    for step, value in enumerate(trajectory.exact_match, start=unscored):
        yield "exact_match", step, value.value


if __name__ == "__main__":
    main(CompareSpec, compare)
