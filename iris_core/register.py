"""Stage `register`: the initial model or one iteration as a run in MLflow, its model as a version in the registry.

    python -m iris_core.register --spec spec.json --out DIR

The experiment is one parent run in the MLflow experiment of its name; each iteration, and the initial model, is a child.
Runs, models and versions are recognised by what they hold (`iris.key`: the keys of the stages behind them), so a
stage that was killed anywhere, or runs again under a recipe that differs only in what does not matter, completes
what is there and duplicates nothing. The parent's metrics have the iteration as step, the initial model step -1.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.git_utils import get_git_commit

from iris_core import tracking
from iris_core.common.digest import json_digest
from iris_core.common.files import seal, write_atomic
from iris_core.common.redaction import redact
from iris_core.execution.stage import main
from iris_core.pipeline.lineage import content_key, describe, spread, version_tags, warnings_of
from iris_core.pipeline.specs import RegisterSpec
from iris_core.store import Artifact, Manifest, Outcome, named_manifest
from iris_core.store.places import PREFIX, iteration_name
from iris_core.tracking import registry
from iris_core.tracking.client import Client
from iris_core.tracking.connection import flatten
from iris_core.tracking.measures import Measures, measures_of
from iris_core.tracking.runs import (
    PARENT_TAG,
    claim_experiment,
    claim_run,
    log_dataset,
    log_files,
    log_output,
    log_params,
    log_points,
    points,
    set_tags,
)

INITIAL_STEP = -1
PARENT = {"iris.role": "experiment"}  # what the parent run is recognised by
LOOP_END = "iris.ended"  # the tag of the run that a loop ended with: the digest of the loop's recipe


@dataclass(frozen=True)
class Record:
    """What is to be logged, and where: the spec, the manifests behind it, and the two runs."""

    client: Client
    spec: RegisterSpec
    manifests: dict[str, Manifest]
    experiment: str
    parent: str
    child: str
    tags: dict[str, str]  # what the child is recognised by

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
        return bool(counted or (scheduled is not None and scheduled.metrics.get("stop")))


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
        record = claim_runs(client, spec, manifests, out)
        log_params(client, record.child, recipe_params(spec) | stage_params(manifests))
        log_inputs(record)
        log_artifacts(record, measures)
        registered, model_id = register_model(record, measures)
        log_metrics(record, model_id)
        finish(record)
    found = {"run_id": record.child, "parent_run_id": record.parent, **registered}
    write_atomic(out / "registration.json", json.dumps(found, indent=1))
    return Outcome(outputs={"registration": out / "registration.json"}, metrics=found)


def read_stages(spec: RegisterSpec) -> dict[str, Manifest]:
    """The manifests behind `spec`, by stage.

    Raises:
        StoreError: one is gone or has changed.
    """
    return {name: named_manifest(artifact) for name, artifact in spec.stages.items()}


def claim_runs(client: Client, spec: RegisterSpec, manifests: dict[str, Manifest], out: Path) -> Record:
    """Finds or makes the experiment's parent run and the iteration's child run."""
    experiment = claim_experiment(client, spec.experiment, tracking.artifact_folder(spec.tracking_uri, otherwise=out))
    started = min(_milliseconds(manifest) for manifest in manifests.values())
    parent = claim_run(client, experiment, spec.experiment, PARENT, started)
    name = iteration_name(spec.iteration)
    tags = {
        "iris.role": "iteration",
        "iris.iteration": name.removeprefix(PREFIX),
        registry.KEY: content_key(spec, manifests),
    }
    child = claim_run(client, experiment, name, tags, started)
    record = Record(client, spec, manifests, experiment, parent, child, tags)
    warned = {"warnings": found} if (found := warnings_of(manifests)) else {}
    set_tags(client, parent, source_tags())
    set_tags(client, child, {PARENT_TAG: parent, **source_tags(), **warned})  # outlives a parent
    client.update_run(child, status="RUNNING")
    if loop_end(record) is None:
        client.update_run(parent, status="RUNNING")
    return record


def recipe_params(spec: RegisterSpec) -> dict[str, str]:
    """The recipe as flat parameters, without credentials."""
    return flatten(yaml.safe_load(spec.recipe))


def stage_params(manifests: dict[str, Manifest]) -> dict[str, str]:
    """What only this iteration has: the order and learning rate it was trained with, and library versions."""
    trained = manifests["train"].spec if "train" in manifests else {}
    own = ("order", "learning_rate")
    params: dict[str, str] = {name: str(trained[name]) for name in own if name in trained}
    for manifest in manifests.values():
        params |= {f"version.{name}": text for name, text in manifest.spec["versions"].items()}
    return params


def log_inputs(record: Record) -> None:
    """The annotated pairs and the synthetic responses as data sets of the child run; the pairs also of the parent's."""
    client, pairs = record.client, record.spec.pairs
    log_dataset(client, record.parent, "annotated", pairs.path, pairs.digest, {})
    trained = record.manifests.get("train")
    if trained is None:
        return
    generated = record.manifests["generate"].metrics if "generate" in record.manifests else {}
    counts = {name: value for name, value in generated.items() if isinstance(value, (int, float))}
    inputs: list[tuple[str, dict[str, str], dict[str, Any]]] = [("annotated", trained.spec["pairs"], {})]
    inputs += [
        ("synthetic" if age == 0 else "synthetic-previous", artifact, counts if age == 0 else {})
        for age, artifact in enumerate(trained.spec["synthetic"])
    ]
    for name, artifact, profile in inputs:
        data = Artifact(**artifact)
        log_dataset(client, record.child, name, data.intact(), data.digest, profile)


def log_artifacts(record: Record, measures: Measures) -> None:
    """Recipe, manifests, measures, scores and training history as files of the child run; the recipe also of the parent's."""
    with tempfile.TemporaryDirectory() as staged:
        folder = Path(staged)
        (folder / "manifests").mkdir()
        (folder / "recipe.yaml").write_text(redact(record.spec.recipe), encoding="utf-8")
        for name, manifest in record.manifests.items():
            text = redact(manifest.model_dump_json(indent=1))
            (folder / "manifests" / f"{name}.json").write_text(text, encoding="utf-8")
        sealed = seal(measures.model_dump(mode="json"))
        (folder / registry.MEASURES).write_text(sealed, encoding="utf-8")
        log_files(record.client, record.child, folder, base=folder)
        record.client.log_artifact(record.parent, str(folder / "recipe.yaml"))
    for stage, output in (("evaluate", "scores"), ("evaluate", "heldout"), ("train", "history")):
        if stage in record.manifests and output in record.manifests[stage].outputs:
            path = record.manifests[stage].artifact(output).intact()
            log_files(record.client, record.child, path)


def register_model(record: Record, measures: Measures) -> tuple[dict[str, Any], str | None]:
    """The model's version, whether it is champion and why, and its logged model."""
    spec, client = record.spec, record.client
    known = registry.versions(client, spec.registered_model)
    tags = version_tags(spec, record.manifests, record.child, known)
    if not may_have_version(spec, tags, known):
        text = (
            f"tracking.registered_model: {spec.registered_model!r} has versions that started from another model, so that the "
            "initial model gets none and does not compete for champion: give another name"
        )
        return {"version": None, "champion": False, "warnings": [text]}, None
    name = f"{spec.experiment}-{iteration_name(spec.iteration)}"
    model = registry.claim_model(client, record.experiment, record.child, name, tags, spec.policy)
    about = describe(spec.registered_model, tags)
    log_output(client, record.parent, model.model_id, record.step)
    version = registry.claim_version(client, spec.registered_model, model, tags, about)
    verdict = registry.promote_if_better(client, version, measures)
    client.set_tag(record.child, "iris.version", f"{spec.registered_model}/{version.version}")
    registered = {
        "version": int(version.version),
        "champion": verdict.wins,
        "champion_note": verdict.note,
    }
    return registered | ({} if verdict.compared else {"warnings": [verdict.note]}), model.model_id


def may_have_version(spec: RegisterSpec, tags: dict[str, str], known: Sequence[ModelVersion]) -> bool:
    """An initial model is the first version or none: as a later one it would be `@latest`."""
    keys = {version.tags.get(registry.KEY) for version in known}
    return spec.iteration is not None or not known or tags[registry.KEY] in keys


def log_metrics(record: Record, model_id: str | None) -> None:
    """Every training step on the child run; the iteration's numbers on the child, its model and the parent."""
    numbers = iteration_metrics(record.manifests)
    child = points(numbers, 0, record.ended, model_id)
    if "train" in record.manifests:
        child += history_points(record.manifests["train"].artifact("history").intact())
    log_points(record.client, record.child, child)
    log_points(record.client, record.parent, points(numbers, record.step, record.ended))


def history_points(history: Path) -> list[Metric]:
    """The rows of a training history as points, each at its own step and time."""
    found = []
    for line in history.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        step, milliseconds = int(row.pop("step")), int(row.pop("time") * 1000)
        found += points(row, step, milliseconds)
    return found


def iteration_metrics(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """One iteration's numbers by the names they have in MLflow."""
    numbers: dict[str, Any] = {}
    if trained := manifests.get("train"):
        numbers |= {"order": trained.spec["order"], **spread("gap", trained.metrics["gap"])}
        for group in ("heldout", "movement", "train"):
            for name, value in trained.metrics[group].items():
                numbers |= spread(f"{group}/{name}", value)
    if evaluated := manifests.get("evaluate"):
        kind = evaluated.metrics.get("label") or "benchmark"
        for name, score in evaluated.metrics.get("benchmarks", {}).items():
            numbers |= spread(f"{kind}/{name}", {key: score.get(key) for key in ("value", "stderr")})
        numbers |= spread(f"{kind}/average", evaluated.metrics.get("average"))
        heldout = evaluated.metrics.get("heldout") or {}
        numbers |= spread("exact_match", heldout.get("exact_match"))
    if generated := manifests.get("generate"):
        numbers |= {f"generate/{name}": value for name, value in generated.metrics.items()}
    numbers |= {f"seconds/{name}": manifest.seconds for name, manifest in manifests.items()}
    return numbers


def finish(record: Record) -> None:
    """Ends the child; the parent too, if the loop has ended. What a late request has made twice goes."""
    client, spec = record.client, record.spec
    if record.is_last:
        client.set_tag(record.child, LOOP_END, json_digest(spec.recipe))
    client.set_terminated(record.child, "FINISHED", record.ended)
    if ended := loop_end(record):
        client.set_terminated(record.parent, "FINISHED", ended)
    for name, tags in ((spec.experiment, PARENT), (iteration_name(spec.iteration), record.tags)):
        claim_run(client, record.experiment, name, tags, record.ended)
    client.set_tag(record.child, *spec.recorded)


def loop_end(record: Record) -> int | None:
    """When the loop of this recipe ended, in milliseconds since 1970; None while it goes on.

    An earlier iteration that is recorded once more after its loop has ended does not set the parent running for ever.
    """
    wanted = (
        f"tags.`{PARENT_TAG}` = '{record.parent}' and tags.`{LOOP_END}` = '{json_digest(record.spec.recipe)}' "
        "and attributes.status = 'FINISHED'"
    )
    found = record.client.search_runs([record.experiment], wanted, max_results=1)
    return int(found[0].info.end_time) if found else None


def source_tags() -> dict[str, str]:
    """The program and its commit, where it is a git checkout, as MLflow shows them in its columns."""
    tags = {"mlflow.source.name": "iris", "mlflow.source.type": "LOCAL"}
    commit = get_git_commit(str(Path(__file__).parent))
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def _milliseconds(manifest: Manifest, ended: bool = False) -> int:
    return int((manifest.started.timestamp() + (manifest.seconds if ended else 0)) * 1000)


if __name__ == "__main__":
    main(RegisterSpec, register)
