"""Stage `compare`: objectives side by side, each with several seeds, on one model and data.

python -m iris_core.compare --spec spec.json --out DIR
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iris_core import tracking
from iris_core.common.files import write_atomic
from iris_core.common.intervals import Interval
from iris_core.execution.stage import main
from iris_core.pipeline.specs import CompareSpec
from iris_core.reporting.comparison import Trajectory, markdown, render, trajectories
from iris_core.store import Outcome
from iris_core.tracking.runs import claim_experiment, claim_run, log_points, points


def compare(spec: CompareSpec, out: Path) -> Outcome:
    """Reads what the loops left, writes the page and its data, and logs both to MLflow."""
    found = trajectories(spec.members)
    data = [{name: _plain(value) for name, value in trajectory._asdict().items()} for trajectory in found]
    write_atomic(out / "comparison.json", json.dumps(data, indent=1, ensure_ascii=False))
    write_atomic(out / "comparison.html", render(spec.experiment, found))
    run_id = log_comparison(spec, found, out)
    return Outcome(
        outputs={"page": out / "comparison.html", "comparison": out / "comparison.json"},
        metrics={"run_id": run_id, "table": markdown(found)},
    )


def log_comparison(spec: CompareSpec, found: Sequence[Trajectory], out: Path) -> str:
    """The comparison as a run of the MLflow experiment of its name; returns the run's id."""
    client = tracking.connect(spec.tracking_uri, spec.execution.patience)
    now = int(time.time() * 1000)
    with tracking.service_errors(spec.tracking_uri):
        folder = tracking.artifact_folder(spec.tracking_uri, otherwise=out)
        experiment = claim_experiment(client, spec.experiment, folder)
        tags = {"iris.role": "comparison", "iris.key": spec.key()}
        run_id = claim_run(client, experiment, "comparison", tags, now)
        for trajectory in found:
            for step, value in enumerate(trajectory.logprob):
                named = {f"{trajectory.objective}/logprob": value.value}
                log_points(client, run_id, points(named, step, now))
            unscored = len(trajectory.logprob) - len(trajectory.exact_match)  # the initial model, perhaps
            for step, value in enumerate(trajectory.exact_match, start=unscored):
                named = {f"{trajectory.objective}/exact_match": value.value}
                log_points(client, run_id, points(named, step, now))
        for name in ("comparison.html", "comparison.json"):
            client.log_artifact(run_id, str(out / name))
        client.set_terminated(run_id, "FINISHED", now)
    return run_id


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump() if isinstance(value, Interval) else value


if __name__ == "__main__":
    main(CompareSpec, compare)
