"""Stage `publish`: uploads the report to MLflow, for people without access to the store.

python -m iris_core.publish --spec spec.json --out DIR
"""

from __future__ import annotations

from pathlib import Path

from iris_core.modeling.patches.imports import begin_imports

if __name__ == "__main__":
    begin_imports()

from iris_core import tracking
from iris_core.common.redaction import redact
from iris_core.execution.stage import main
from iris_core.pipeline.metrics import PublishMetrics
from iris_core.pipeline.specs import PUBLISHED, PublishSpec
from iris_core.store import Outcome
from iris_core.tracking.client import Client


def publish(spec: PublishSpec, out: Path) -> Outcome:
    """Uploads the files. They replace those of an earlier report."""
    client = tracking.connect(spec.tracking_uri, spec.execution.patience)
    with tracking.service_errors(spec.tracking_uri):
        for file in spec.files:
            client.log_artifact(spec.run_id, str(file.path))
        client.set_tag(spec.run_id, PUBLISHED, spec.key())
        link = page_of(client, spec.run_id, spec.files[0].path.name)
    return Outcome(outputs={}, metrics=PublishMetrics(run_id=spec.run_id, link=link))


def page_of(client: Client, run_id: str, file: str) -> str | None:
    """The page of MLflow's UI that shows a file of a run; None without a server."""
    uri = client.tracking_uri
    if not uri.startswith("http"):
        return None
    experiment = client.get_run(run_id).info.experiment_id
    return f"{redact(uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}/artifacts/{file}"


if __name__ == "__main__":
    main(PublishSpec, publish)
