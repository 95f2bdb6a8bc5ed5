"""Stage `register`: one iteration as a run in MLflow, its model as a version in the registry.

    python -m iris_core.register --spec spec.json --out DIR

The experiment is one parent run in the MLflow experiment of its name; each iteration, and the initial model, is a child.
Runs, models and versions are recognised by what they hold (`iris.key`: the keys of the stages behind them), so a
stage that was killed anywhere, or runs again under a recipe that differs only in what does not matter, completes
what is there and duplicates nothing. The parent's metrics have the iteration as step, the initial model step -1.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric

from iris_core import registry, tracking
from iris_core.digest import json_digest
from iris_core.mlflow_runs import (
    PARENT_TAG,
    claim_experiment,
    claim_run,
    log_dataset,
    log_params,
    log_points,
    points,
)
from iris_core.specs import RegisterSpec
from iris_core.stage import main
from iris_core.store import Manifest, Outcome, require_manifest, write_atomic

INITIAL_STEP = -1
SCORE_SETTINGS = ("label", "limit", "backend", "apply_chat_template", "dtype", "data", "lm_eval")
USE = """```python
from iris_core.load import load_model

model, tokenizer = load_model("models:/{name}@champion")
```"""


@dataclass(frozen=True)
class Record:
    """What is to be logged, and where: the spec, the manifests behind it, and the two runs."""

    client: MlflowClient
    spec: RegisterSpec
    manifests: dict[str, Manifest]
    experiment: str
    parent: str
    child: str

    @property
    def step(self) -> int:
        """The iteration, as a step of the parent's metrics."""
        return INITIAL_STEP if self.spec.iteration is None else self.spec.iteration

    @property
    def ended(self) -> int:
        """When the last stage ended, in milliseconds since 1970."""
        return max(_milliseconds(manifest, ended=True) for manifest in self.manifests.values())


def register(spec: RegisterSpec, out: Path) -> Outcome:
    """Logs the iteration and registers its model; the initial model gets a run and no version."""
    manifests = read_stages(spec)
    client = tracking.connect(spec.tracking_uri)
    with tracking.service_errors(spec.tracking_uri):
        record = claim_runs(client, spec, manifests, out)
        log_params(client, record.child, recipe_params(spec) | stage_params(manifests))
        log_inputs(record)
        log_artifacts(record)
        version, model_id = register_model(record)
        log_metrics(record, model_id)
        finish(record)
    found = {"run_id": record.child, "parent_run_id": record.parent, "version": version}
    write_atomic(out / "registration.json", json.dumps(found, indent=1))
    return Outcome(outputs={"registration": out / "registration.json"}, metrics=found)


def read_stages(spec: RegisterSpec) -> dict[str, Manifest]:
    """The manifests behind `spec`, by stage.

    Raises:
        StoreError: one is gone.
    """
    return {name: require_manifest(artifact.path.parent) for name, artifact in spec.stages.items()}


def content_key(spec: RegisterSpec, manifests: dict[str, Manifest]) -> str:
    """What an iteration is recognised by: its place, its model and the keys of the stages that made and scored it.

    Not by paths, nor by the schedule, whose key changes when iterations are added.
    """
    policy = spec.policy
    return json_digest({
        "experiment": spec.experiment,
        "iteration": spec.iteration,
        "policy": [policy.model.digest, policy.adapter.digest if policy.adapter else None],
        "stages": {name: manifest.key for name, manifest in manifests.items() if name != "schedule"},
    })  # fmt: skip


def run_name(iteration: int | None) -> str:
    """What the run of an iteration (None: of the initial model) is called."""
    return "initial" if iteration is None else f"iteration-{iteration}"


def claim_runs(
    client: MlflowClient, spec: RegisterSpec, manifests: dict[str, Manifest], out: Path
) -> Record:
    """Finds or makes the experiment's parent run and the iteration's child run."""
    experiment = claim_experiment(
        client, spec.experiment, tracking.artifact_folder(spec.tracking_uri, otherwise=out)
    )
    started = min(_milliseconds(manifest) for manifest in manifests.values())
    parent = claim_run(client, experiment, spec.experiment, {"iris.role": "experiment"}, started)
    name = run_name(spec.iteration)
    tags = {
        "iris.role": "iteration",
        "iris.iteration": name.removeprefix("iteration-"),
        registry.KEY: content_key(spec, manifests),
    }
    child = claim_run(client, experiment, name, tags, started)
    client.set_tag(child, PARENT_TAG, parent)  # a child outlives a parent that was deleted
    for run in (parent, child):
        client.update_run(run, status="RUNNING")
    return Record(client, spec, manifests, experiment, parent, child)


def recipe_params(spec: RegisterSpec) -> dict[str, str]:
    """The recipe as flat parameters, without credentials."""
    return tracking.flatten(yaml.safe_load(spec.recipe))


def stage_params(manifests: dict[str, Manifest]) -> dict[str, str]:
    """What only this iteration has: the order and learning rate it was trained with, and library versions."""
    trained = manifests["train"].spec if "train" in manifests else {}
    own = ("order", "learning_rate")
    params: dict[str, str] = {name: str(trained[name]) for name in own if name in trained}
    for manifest in manifests.values():
        params |= {f"version.{name}": text for name, text in manifest.spec["versions"].items()}
    return params


def log_inputs(record: Record) -> None:
    """The annotated pairs and the synthetic responses as data sets of the child run."""
    trained = record.manifests.get("train")
    if trained is None:
        return
    generated = record.manifests["generate"].metrics if "generate" in record.manifests else {}
    counts = {name: value for name, value in generated.items() if isinstance(value, (int, float))}
    inputs: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        ("annotated", trained.spec["pairs"], {})
    ]
    inputs += [
        ("synthetic" if age == 0 else "synthetic-previous", artifact, counts if age == 0 else {})
        for age, artifact in enumerate(trained.spec["synthetic"])
    ]
    for name, artifact, profile in inputs:
        log_dataset(
            record.client, record.child, name, Path(artifact["path"]), artifact["digest"], profile
        )


def log_artifacts(record: Record) -> None:
    """The recipe, every manifest, the scores and the training history as files of the child run; the recipe also of the parent's."""
    with tempfile.TemporaryDirectory() as staged:
        folder = Path(staged)
        (folder / "manifests").mkdir()
        (folder / "recipe.yaml").write_text(tracking.redact(record.spec.recipe), encoding="utf-8")
        for name, manifest in record.manifests.items():
            text = tracking.redact(manifest.model_dump_json(indent=1))
            (folder / "manifests" / f"{name}.json").write_text(text, encoding="utf-8")
        record.client.log_artifacts(record.child, staged)
        record.client.log_artifact(record.parent, str(folder / "recipe.yaml"))
    for stage, output in (("evaluate", "scores"), ("evaluate", "heldout"), ("train", "history")):
        if stage in record.manifests and output in record.manifests[stage].outputs:
            record.client.log_artifact(
                record.child, str(record.manifests[stage].artifact(output).path)
            )


def register_model(record: Record) -> tuple[int | None, str | None]:
    """The iteration's model version and logged model; (None, None) for the initial model."""
    spec, client = record.spec, record.client
    if spec.iteration is None:
        return None, None
    tags = version_tags(record)
    name = f"{spec.experiment}-{run_name(spec.iteration)}"
    model = registry.claim_model(client, record.experiment, record.child, name, tags, spec.policy)
    about = describe(spec.registered_model, tags)
    version = registry.claim_version(client, spec.registered_model, model, tags, about)
    registry.seek_title(client, version)
    client.set_tag(record.child, "iris.version", f"{spec.registered_model}/{version.version}")
    return int(version.version), model.model_id


def version_tags(record: Record) -> dict[str, str]:
    """What a version tells about itself: scores, order, gap, lineage, digests. The most telling come first."""
    spec, manifests = record.spec, record.manifests
    trained, evaluated = manifests.get("train"), manifests.get("evaluate")
    average = (evaluated.metrics.get("average") if evaluated else None) or {}
    gap = trained.metrics["gap"] if trained else {}
    tags = {
        "iteration": spec.iteration,
        "average": average.get("value"),
        "average_stderr": average.get("stderr"),
        "label": evaluated.metrics.get("label") if evaluated else None,
        "order": trained.spec["order"] if trained else None,
        **_spread("gap", {name: f"{value:.6g}" for name, value in gap.items()}),
        "parent_version": _parent_version(record),
        "experiment": spec.experiment,
        "dtype": trained.spec["dtype"] if trained else None,
        "model_path": spec.policy.model.path,
        "model_digest": spec.policy.model.digest,
        "adapter_digest": spec.policy.adapter.digest if spec.policy.adapter else None,
        "evaluation_settings": score_settings(evaluated) if evaluated else None,
        registry.KEY: content_key(spec, manifests),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def describe(name: str, tags: dict[str, str]) -> str:
    """A version in a sentence, and how to use it."""
    label = f"{tags['label']} average" if "label" in tags else "benchmark average"
    score = f", {label} {100 * float(tags['average']):.1f} %" if "average" in tags else ""
    gap = (
        f", gap {tags['gap']} (ESS {tags['gap_ess']} of {tags['gap_pairs']})"
        if "gap" in tags
        else ""
    )
    return f"Iteration {tags['iteration']}: order {tags.get('order')}{gap}{score}.\n\n{USE.format(name=name)}"


def score_settings(evaluated: Manifest) -> str:
    """The settings that a benchmark average depends on, as JSON: only equal ones are compared."""
    files = sorted(evaluated.artifact("scores").path.glob("*.json"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    settings = {name: records[0].get(name) if records else None for name in SCORE_SETTINGS}
    settings["benchmarks"] = sorted(record["benchmark"] for record in records)
    settings["protocol"] = (evaluated.metrics.get("average") or {}).get("protocol")
    return json.dumps(settings, sort_keys=True)


def log_metrics(record: Record, model_id: str | None) -> None:
    """Every training step on the child run; the iteration's numbers on the child, its model and the parent."""
    numbers = iteration_metrics(record.manifests)
    child = points(numbers, 0, record.ended, model_id)
    if "train" in record.manifests:
        child += history_points(record.manifests["train"].artifact("history").path)
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
        numbers |= {"order": trained.spec["order"], **_spread("gap", trained.metrics["gap"])}
        for group in ("heldout", "movement", "train"):
            for name, value in trained.metrics[group].items():
                numbers |= _spread(f"{group}/{name}", value)
    if evaluated := manifests.get("evaluate"):
        kind = evaluated.metrics.get("label") or "benchmark"
        for name, score in evaluated.metrics.get("benchmarks", {}).items():
            numbers |= _spread(
                f"{kind}/{name}", {key: score.get(key) for key in ("value", "stderr")}
            )
        numbers |= _spread(f"{kind}/average", evaluated.metrics.get("average"))
        heldout = evaluated.metrics.get("heldout") or {}
        numbers |= _spread("exact_match", heldout.get("exact_match"))
    if generated := manifests.get("generate"):
        numbers |= {f"generate/{name}": value for name, value in generated.metrics.items()}
    numbers |= {f"seconds/{name}": manifest.seconds for name, manifest in manifests.items()}
    return numbers


def finish(record: Record) -> None:
    """Ends the child; the parent too, if this was the last iteration."""
    scheduled = record.manifests.get("schedule")
    wanted = yaml.safe_load(record.spec.recipe)["iterations"]
    last = record.spec.iteration is not None and record.spec.iteration + 1 >= wanted
    record.client.set_terminated(record.child, "FINISHED", record.ended)
    if last or (scheduled is not None and scheduled.metrics.get("stop")):
        record.client.set_terminated(record.parent, "FINISHED", record.ended)


def _parent_version(record: Record) -> str:
    """The version that the iteration started from, by its content."""
    trained = record.manifests.get("train")
    if trained is None or record.spec.iteration == 0:
        return "initial"
    start = trained.spec["policy"]
    digest = (start["adapter"] or start["model"])["digest"]
    kind = "adapter_digest" if start["adapter"] else "model_digest"
    known = registry.versions(record.client, record.spec.registered_model)
    return next(
        (str(v.version) for v in reversed(known) if v.tags.get(kind) == digest), f"sha256:{digest}"
    )


def _spread(name: str, value: Any) -> dict[str, Any]:
    """{"gap": {"value": 1, "low": 0}} as gap, gap_low; a plain number as itself."""
    if not isinstance(value, dict):
        return {name: value}
    return {name if key == "value" else f"{name}_{key}": number for key, number in value.items()}


def _milliseconds(manifest: Manifest, ended: bool = False) -> int:
    return int((manifest.started.timestamp() + (manifest.seconds if ended else 0)) * 1000)


if __name__ == "__main__":
    main(RegisterSpec, register)
