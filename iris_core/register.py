"""Stage `register`: the initial model or one iteration as a run in MLflow, its model as a version in the registry.

    python -m iris_core.register --spec spec.json --out DIR

The experiment is one parent run in the MLflow experiment of its name. Each iteration is a child run, and so is the
initial model. The tag `iris.key` identifies runs, models and versions by content: by the keys of the stages behind
them. So a stage that was killed, or runs again with a recipe that differs only in what does not matter, completes what
exists and duplicates nothing. The parent's metrics have the iteration as step; the initial model has step -1.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_core.modeling.patches.imports import begin_imports

if __name__ == "__main__":
    begin_imports()

import yaml

from iris_core import tracking
from iris_core.common.digest import json_digest
from iris_core.common.files import seal, write_atomic
from iris_core.common.redaction import redact
from iris_core.execution.stage import main
from iris_core.pipeline.lineage import all_warnings, content_key, describe, version_tags
from iris_core.pipeline.logged import inputs, iteration_metrics, recipe_params, stage_params
from iris_core.pipeline.measured import measures_of
from iris_core.pipeline.metrics import RegisterMetrics, ScheduleMetrics
from iris_core.pipeline.specs import RegisterSpec
from iris_core.store import Manifest, Outcome, named_manifest
from iris_core.store.places import PREFIX, iteration_name
from iris_core.tracking import registry, runs
from iris_core.tracking.client import Client
from iris_core.tracking.measures import Measures

INITIAL_STEP = -1
PARENT = {"iris.role": "experiment"}  # identifies the parent run
FILES = (("evaluate", "scores"), ("evaluate", "heldout"), ("train", "history"))  # stages and outputs kept in MLflow


@dataclass(frozen=True)
class Record:
    """What is to be logged, and where: the spec, the manifests behind it, and the two runs."""

    client: Client
    spec: RegisterSpec
    manifests: dict[str, Manifest]
    experiment: str
    parent: str
    child: str
    tags: dict[str, str]  # identify the child

    @property
    def step(self) -> int:
        """The iteration, as a step of the parent's metrics."""
        return INITIAL_STEP if self.spec.iteration is None else self.spec.iteration

    @property
    def ended(self) -> int:
        """When the last stage ended, in milliseconds since 1970."""
        return max(_milliseconds(manifest, ended=True) for manifest in self.manifests.values())

    @property
    def is_last(self) -> bool:
        """Whether the loop ends with this iteration."""
        scheduled = self.manifests.get("schedule")
        wanted = yaml.safe_load(self.spec.recipe)["iterations"]
        counted = self.spec.iteration is not None and self.spec.iteration + 1 >= wanted
        return bool(counted or (scheduled and ScheduleMetrics.of(scheduled).stop))

    @property
    def loop_end(self) -> int | None:
        """When the loop of this recipe ended; None while it runs.

        An iteration may be recorded again after that. It must not set the parent running again.
        """
        return runs.loop_end(self.client, self.experiment, self.parent, json_digest(self.spec.recipe))


def register(spec: RegisterSpec, out: Path) -> Outcome:
    """Logs the iteration, registers its model and lets it challenge the champion.

    Raises:
        StoreError: what a stage behind it has left is gone or has changed.
    """
    manifests = read_stages(spec)
    measures = measures_of(manifests, spec.pairs.intact())
    if spec.policy.adapter:
        spec.policy.adapter.intact()
    client = tracking.connect(spec.tracking_uri, spec.execution.patience)
    with tracking.service_errors(spec.tracking_uri):
        record = get_or_create_runs(client, spec, manifests, out)
        runs.log_params(client, record.child, recipe_params(spec) | stage_params(manifests))
        log_inputs(record)
        log_artifacts(record, measures)
        registered, model_id = register_model(record, measures)
        log_metrics(record, model_id)
        finish(record)
    file = out / "registration.json"
    write_atomic(file, registered.model_dump_json(indent=1))
    return Outcome(outputs={"registration": file}, metrics=registered)


def read_stages(spec: RegisterSpec) -> dict[str, Manifest]:
    """The manifests behind `spec`, by stage.

    Raises:
        StoreError: one is missing or has changed.
    """
    return {name: named_manifest(artifact) for name, artifact in spec.stages.items()}


def get_or_create_runs(client: Client, spec: RegisterSpec, manifests: dict[str, Manifest], out: Path) -> Record:
    """The experiment's parent run and the iteration's child run, both with their tags and running."""
    folder = tracking.artifact_folder(spec.tracking_uri, otherwise=out)
    experiment = runs.get_or_create_experiment(client, spec.experiment, folder)
    started = min(_milliseconds(manifest) for manifest in manifests.values())
    parent = runs.get_or_create_run(client, experiment, spec.experiment, PARENT, started)
    name = iteration_name(spec.iteration)
    tags = {
        "iris.role": "iteration",
        "iris.iteration": name.removeprefix(PREFIX),
        registry.KEY: content_key(spec, manifests),
    }
    child = runs.get_or_create_run(client, experiment, name, tags, started)
    record = Record(client, spec, manifests, experiment, parent, child, tags)
    warned = {"warnings": found} if (found := all_warnings(manifests)) else {}
    source = runs.source_tags()
    runs.set_tags(client, parent, source)
    runs.set_tags(client, child, {runs.PARENT_TAG: parent, **source, **warned})  # a deleted parent is created again
    client.update_run(child, status="RUNNING")
    if record.loop_end is None:
        client.update_run(parent, status="RUNNING")
    return record


def log_inputs(record: Record) -> None:
    """The annotated pairs and synthetic responses as data sets of the child run; the pairs also of the parent's."""
    pairs = record.spec.pairs
    runs.log_dataset(record.client, record.parent, "annotated", pairs.path, pairs.digest, {})
    for name, artifact, profile in inputs(record.manifests):
        runs.log_dataset(record.client, record.child, name, artifact.intact(), artifact.digest, profile)


def log_artifacts(record: Record, measures: Measures) -> None:
    """Recipe, manifests, measures, scores and training history as files of the child run.

    The recipe is a file of the parent run, too.
    """
    with tempfile.TemporaryDirectory() as staged:
        folder = Path(staged)
        (folder / "manifests").mkdir()
        (folder / "recipe.yaml").write_text(redact(record.spec.recipe), encoding="utf-8")
        for name, manifest in record.manifests.items():
            text = redact(manifest.model_dump_json(indent=1))
            (folder / "manifests" / f"{name}.json").write_text(text, encoding="utf-8")
        sealed = seal(measures.model_dump(mode="json"))
        (folder / registry.MEASURES).write_text(sealed, encoding="utf-8")
        runs.log_files(record.client, record.child, folder, base=folder)
        record.client.log_artifact(record.parent, str(folder / "recipe.yaml"))
    for stage, output in FILES:
        if stage in record.manifests and output in record.manifests[stage].outputs:
            runs.log_files(record.client, record.child, record.manifests[stage].artifact(output).intact())


def register_model(record: Record, measures: Measures) -> tuple[RegisterMetrics, str | None]:
    """The model's version and whether it is champion; the id of its logged model."""
    spec, client = record.spec, record.client
    known = registry.versions(client, spec.registered_model)
    tags = version_tags(spec, record.manifests, record.child, known)
    ids: dict[str, Any] = {"run_id": record.child, "parent_run_id": record.parent}
    if not registry.may_have_version(tags, known):
        return RegisterMetrics(**ids, champion=False, warnings=[_no_version(spec.registered_model)]), None
    name = f"{spec.experiment}-{iteration_name(spec.iteration)}"
    model = registry.get_or_create_model(client, record.experiment, record.child, name, tags, spec.policy)
    runs.log_output(client, record.parent, model.model_id, record.step)
    about = describe(spec.registered_model, tags)
    version = registry.get_or_create_version(client, spec.registered_model, model, tags, about)
    verdict = registry.promote_if_better(client, version, measures)
    client.set_tag(record.child, "iris.version", f"{spec.registered_model}/{version.version}")
    registered = RegisterMetrics(
        **ids,
        version=int(version.version),
        champion=verdict.wins,
        champion_note=verdict.note,
        warnings=[] if verdict.compared else [verdict.note],
    )
    return registered, model.model_id


def log_metrics(record: Record, model_id: str | None) -> None:
    """Every training step on the child run; the iteration's numbers on the child, its model and the parent."""
    numbers = iteration_metrics(record.manifests)
    child = runs.points(numbers, 0, record.ended, model_id)
    if "train" in record.manifests:
        child += runs.history_points(record.manifests["train"].artifact("history").intact())
    runs.log_points(record.client, record.child, child)
    runs.log_points(record.client, record.parent, runs.points(numbers, record.step, record.ended))


def finish(record: Record) -> None:
    """Ends the child run; the parent too, if the loop has ended. Removes runs that a late request has duplicated."""
    client, spec = record.client, record.spec
    if record.is_last:
        client.set_tag(record.child, runs.LOOP_END, json_digest(spec.recipe))
    client.set_terminated(record.child, "FINISHED", record.ended)
    if ended := record.loop_end:
        client.set_terminated(record.parent, "FINISHED", ended)
    for name, tags in ((spec.experiment, PARENT), (iteration_name(spec.iteration), record.tags)):
        runs.get_or_create_run(client, record.experiment, name, tags, record.ended)
    client.set_tag(record.child, *spec.recorded)


def _no_version(name: str) -> str:
    return (
        f"tracking.registered_model: {name!r} has versions that started from another model, so that the initial model "
        "gets none and does not compete for champion: give another name"
    )


def _milliseconds(manifest: Manifest, ended: bool = False) -> int:
    return int((manifest.started.timestamp() + (manifest.seconds if ended else 0)) * 1000)


if __name__ == "__main__":
    main(RegisterSpec, register)
