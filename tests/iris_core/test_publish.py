"""The stage `publish` against a real MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_core import tracking
from iris_core.pipeline import plan
from iris_core.publish import publish
from iris_core.register import register
from iris_core.reporting.page import write_report
from iris_core.store import run_stage
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("served", [True, False])
def test_the_report_is_a_file_of_the_parent_run(mlflow_server, tmp_path, served):
    tracked = {"tracking": {"uri": mlflow_server}} if served else {}
    small = SmallExperiment(tmp_path, [0.3, 0.4], name="published", **tracked)
    uri = small.experiment.tracking_uri
    for spec in [small.initial(), *small.iterations()]:
        registered = small.run(spec, "registered", register).metrics
        report = write_report(small.store)
        asked = plan.publish_spec(small.experiment, registered["parent_run_id"], report)
        manifest = run_stage(asked, small.store.folder(asked), publish)
    client = tracking.connect(uri)
    run = client.get_run(registered["parent_run_id"])
    assert {"report.html", "report.json"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    kept = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    assert Path(kept).read_text() == report.read_text()
    page = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/report.html"
    assert manifest.metrics["link"] == (page if served else None)
    assert run_stage(asked, small.store.folder(asked), publish).reused

    later = tmp_path / "later" / "report.html"
    later.parent.mkdir()
    for name in ("report.html", "report.json"):
        later.with_name(name).write_text("a later report")
    other = plan.publish_spec(small.experiment, registered["parent_run_id"], later)
    run_stage(other, small.store.folder(other), publish)
    assert not run_stage(asked, small.store.folder(asked), publish).reused  # the first one again
    kept = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    assert Path(kept).read_text() == report.read_text()
    client.delete_run(run.info.run_id)
    assert not asked.kept_elsewhere(manifest)
