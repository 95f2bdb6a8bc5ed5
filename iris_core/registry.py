"""Model versions in MLflow: made once per content, tagged with their lineage, and pointed to by two aliases.

`latest` is the newest version; MLflow reserves that alias and resolves it itself (`models:/demo@latest`).

`champion` is the version with the best benchmark average:
- a challenger must be strictly better than the champion: on a tie the earlier version stays;
- a version without a score (a failed evaluation, not a number) never becomes champion;
- only averages measured with the same settings (benchmarks, label, items, shots, harness version...) are compared; where
  they differ the champion stays, and the challenger's tag `champion_note` says why and what to do;
- a champion that a person chose is replaced under the same rule only.

Each version is an MLflow logged model: the adapter's own files, or for full weights a reference to them, and an
`MLmodel` file that names the base by path and digest. Nothing is pickled; `iris_core.load` reads it back.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from iris_core.store import Policy, Strict

KEY = "iris.key"
CHAMPION = "champion"
NOTE = "champion_note"
MODEL_TYPE = "iris"
VERSIONS_TAG = "mlflow.modelVersions"  # links a logged model to its versions in the UI


class Score(Strict):
    """A benchmark average and the settings it was measured with (JSON); None where there is no score."""

    average: float | None
    settings: str


def challenge(challenger: Score, champion: Score | None) -> tuple[bool, str]:
    """Whether the challenger takes the title, and why (not)."""
    if challenger.average is None or math.isnan(challenger.average):
        return False, "no benchmark average: it cannot be champion"
    if champion is None:
        return True, "champion: the first version with a benchmark average"
    if champion.average is None or champion.settings != challenger.settings:
        named = _difference(json.loads(champion.settings), json.loads(challenger.settings))
        return False, (
            f"not compared: the champion was scored with other settings ({named}); to start anew, remove the alias "
            f"`{CHAMPION}` and register again, or set it yourself"
        )
    if challenger.average > champion.average:
        return True, f"champion: {challenger.average:.4f}, before it {champion.average:.4f}"
    return (
        False,
        f"not better than the champion: {challenger.average:.4f}, champion {champion.average:.4f}",
    )


def claim_model(
    client: MlflowClient,
    experiment: str,
    run_id: str,
    name: str,
    tags: Mapping[str, str],
    policy: Policy,
) -> LoggedModel:
    """The logged model with the key in `tags`, made and filled if it is missing or was left unfinished.

    Args:
        client: from `tracking.connect`.
        experiment: the id of the MLflow experiment.
        run_id: the run that it is an output of.
        name: what a new one is called.
        tags: its tags; `iris.key` among them is what it is recognised by.
        policy: what it holds: the adapter's files, or a reference to the model's folder.
    """
    found = client.search_logged_models([experiment], f"tags.`{KEY}` = '{tags[KEY]}'")
    model = (
        found[0]
        if found
        else client.create_logged_model(experiment, name, run_id, dict(tags), model_type=MODEL_TYPE)
    )
    if model.status != LoggedModelStatus.READY:
        if policy.adapter:
            client.log_model_artifacts(model.model_id, str(policy.adapter.path))
        with tempfile.TemporaryDirectory() as folder:
            description = Path(folder) / "MLmodel"
            _describe(model, run_id, tags).save(str(description))
            client.log_model_artifact(model.model_id, str(description))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(run_id).outputs
    if model.model_id not in {
        output.model_id for output in (outputs.model_outputs if outputs else [])
    }:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def claim_version(
    client: MlflowClient, name: str, model: LoggedModel, tags: Mapping[str, str], description: str
) -> ModelVersion:
    """The version of the registered model `name` with the key in `tags`, made if missing."""
    try:
        client.create_registered_model(name, {MODEL_TYPE: "self-play"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = [version for version in versions(client, name) if version.tags.get(KEY) == tags[KEY]]
    version = found[0] if found else client.create_model_version(
        name, f"models:/{model.model_id}", model.source_run_id, dict(tags), description=description, model_id=model.model_id
    )  # fmt: skip
    link = json.dumps([{"name": name, "version": int(version.version)}])
    if client.get_logged_model(model.model_id).tags.get(VERSIONS_TAG) != link:
        client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: link})
    return version


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of the registered model `name`, oldest first."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f'name = "{name}"', max_results=100, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def seek_title(client: MlflowClient, version: ModelVersion) -> str:
    """Lets `version` challenge the champion; moves the alias if it wins, and returns (and tags) the reason."""
    champion = champion_of(client, version.name)
    if champion is not None and champion.version == version.version:
        note = version.tags.get(NOTE) or "champion"
    else:
        wins, note = challenge(score_of(version), score_of(champion) if champion else None)
        if wins:
            client.set_registered_model_alias(version.name, CHAMPION, version.version)
        if wins and champion:
            client.set_model_version_tag(
                version.name, champion.version, NOTE, f"champion until version {version.version}"
            )
    client.set_model_version_tag(version.name, version.version, NOTE, note)
    return note


def champion_of(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version with the alias `champion`, or None."""
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    return client.get_model_version_by_alias(name, CHAMPION)


def score_of(version: ModelVersion) -> Score:
    """The score in a version's tags."""
    average = version.tags.get("average")
    return Score(
        average=float(average) if average else None,
        settings=version.tags.get("evaluation_settings", "{}"),
    )


def _describe(model: LoggedModel, run_id: str, tags: Mapping[str, str]) -> Model:
    description = Model(
        artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id
    )
    described = {
        name: tags[name]
        for name in ("model_path", "model_digest", "adapter_digest", "dtype")
        if name in tags
    }
    description.add_flavor("iris", loader_module="iris_core.load", **described)
    return description


def _difference(champion: dict[str, object], challenger: dict[str, object]) -> str:
    """The first setting that differs, as "limit: 100, here null"."""
    for name in sorted({*champion, *challenger}):
        if champion.get(name) != challenger.get(name):
            return (
                f"{name}: {json.dumps(champion.get(name))}, here {json.dumps(challenger.get(name))}"
            )
    return "it has no score"
