"""Model versions in MLflow: made once per content, tagged with their lineage, and pointed to by two aliases.

`latest` is the newest version; MLflow reserves that alias and resolves it itself (`models:/demo@latest`).

`champion` is the best so far by the rule of `iris_core.champion`.

Each version is an MLflow logged model: the adapter's own files, or for full weights a reference to them, and an
`MLmodel` file that names the base by path and digest. Nothing is pickled; `iris_core.load` reads it back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from iris_core.champion import CHAMPION, FORMER, LOST, Verdict, challenge, first_champion
from iris_core.measures import Measures, policy_digest
from iris_core.store import Policy

KEY = "iris.key"
NOTE = "champion_note"
INITIAL = "initial"  # the tag `iteration` of the model that self-play starts from
RUN = "run"  # the tag that names the run with the version's files
OPPONENT = "opponent_digest"
# an initial model may be scored again
SCORE_TAGS = ("average", "average_stderr", "label", "warnings")
MEASURES = "measures.json"
MODEL_TYPE = "iris"
VERSIONS_TAG = "mlflow.modelVersions"  # links a logged model to its versions in the UI


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
    """The version of the registered model `name` with the key in `tags`, made if missing, with these tags.

    What a version started from never changes; where its weights lie and, for an initial model, its scores may.
    """
    try:
        client.create_registered_model(name, {MODEL_TYPE: "self-play"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = [version for version in versions(client, name) if version.tags.get(KEY) == tags[KEY]]
    version = found[0] if found else client.create_model_version(
        name, f"models:/{model.model_id}", model.source_run_id, dict(tags), description=description, model_id=model.model_id
    )  # fmt: skip
    _update_tags(client, version, tags)
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


def promote_if_better(client: MlflowClient, version: ModelVersion, measures: Measures) -> Verdict:
    """Lets `version` challenge the champion; tags it with the reason and moves the alias if it wins.

    The alias moves last, so that a kill before that leaves a challenge that is repeated whole. One that was lost, or a
    former champion's, is over: a version that is registered again does not repeat it.
    """
    champion, note = champion_of(client, version.name), version.tags.get(NOTE, "")
    if champion is not None and champion.version == version.version:
        return Verdict(True, note or CHAMPION)
    if champion is not None and note.startswith((FORMER, LOST)):
        return Verdict(False, note)
    if champion is None:
        verdict = first_champion(measures, version.tags.get("iteration") == INITIAL)
    else:
        held = _champion_measures(client, champion, version, measures)
        verdict = challenge(measures, held, f"version {champion.version}")
    client.set_model_version_tag(version.name, version.version, NOTE, verdict.note)
    if verdict.wins:
        if champion is not None:
            former = f"{FORMER} version {version.version}"
            client.set_model_version_tag(version.name, champion.version, NOTE, former)
        client.set_registered_model_alias(version.name, CHAMPION, version.version)
    return verdict


def champion_of(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version with the alias `champion`, or None."""
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    return client.get_model_version_by_alias(name, CHAMPION)


def weights_of(version: ModelVersion) -> str:
    """What the weights of a version are recognised by."""
    return policy_digest(version.tags.get("model_digest", ""), version.tags.get("adapter_digest"))


def read_measures(client: MlflowClient, version: ModelVersion) -> Measures | None:
    """What a version scored, from its run; None where that is gone, or was never there."""
    run = version.tags.get(RUN)
    try:
        if run is None or MEASURES not in {item.path for item in client.list_artifacts(run)}:
            return None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(client.download_artifacts(run, MEASURES, folder))
        return Measures.model_validate_json(file.read_text(encoding="utf-8"))


def _champion_measures(
    client: MlflowClient, champion: ModelVersion, version: ModelVersion, measures: Measures
) -> Measures | None:
    """What the champion scored. Log-probs that it did not measure (the initial model's) come from one that played it."""
    held = read_measures(client, champion)
    if held is None or held.logprob:
        return held
    newest_first = reversed(versions(client, champion.name))
    played = [v for v in newest_first if v.tags.get(OPPONENT) == weights_of(champion)]
    known = [measures if v.version == version.version else read_measures(client, v) for v in played]
    found = [one.opponent_logprob for one in known if one and one.opponent_logprob]
    ours = measures.logprob
    alike = [one for one in found if ours and one.same_items(ours)]
    return held.model_copy(update={"logprob": next(iter(alike + found), None)})


def _update_tags(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    place = (version.name, version.version)
    for name, value in tags.items():
        if version.tags.get(name) != value and name != "parent_version":
            client.set_model_version_tag(*place, name, value)
    for name in SCORE_TAGS:
        if name in version.tags and name not in tags:
            client.delete_model_version_tag(*place, name)


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
