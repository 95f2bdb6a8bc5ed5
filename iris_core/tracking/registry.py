"""Model versions in MLflow: one for each content, with tags for its lineage, and two aliases.

- `latest` is the newest version. MLflow reserves that alias and resolves it itself (`models:/demo@latest`).
- `champion` is the best version so far, by the rule of `iris_core.tracking.champion`.

Each version is an MLflow logged model: the files of the adapter, or a reference to full weights, and an `MLmodel` file
that names the base model by path and digest. Nothing is pickled; `iris_core.load` reads it back.

The tag `iris.key` identifies models and versions. Where a lost reply led to two of one, the second is removed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from iris_core.common.files import read_sealed
from iris_core.store import Artifact, Policy
from iris_core.tracking.champion import CHAMPION, FORMER, Verdict, again, challenge, first_champion
from iris_core.tracking.client import Client, repeatable
from iris_core.tracking.measures import Measures, policy_digest
from iris_core.tracking.model_name import KEY as KEY
from iris_core.tracking.model_name import OURS
from iris_core.tracking.runs import log_output

NOTE = "champion_note"
JUDGED = "iris.challenged"  # the tag of a version that has challenged: written last, after the alias has moved
INITIAL = "initial"  # the tag `iteration` of the model that self-play starts from
RUN = "run"  # the tag that names the run with the version's files
OPPONENT = "opponent_digest"
SCORE_TAGS = ("average", "average_stderr", "label", "warnings")  # they may go: an initial model may be scored again
MEASURES = "measures.json"
MODEL_TYPE = "iris"
DESCRIPTION = "MLmodel"
VERSIONS_TAG = "mlflow.modelVersions"  # links a logged model to its versions in the UI


def get_or_create_model(
    client: Client,
    experiment: str,
    run_id: str,
    name: str,
    tags: Mapping[str, str],
    policy: Policy,
) -> LoggedModel:
    """The logged model with the key in `tags`, created if it is missing, and completed if files are missing.

    Args:
        client: from `tracking.connect`.
        experiment: the id of the MLflow experiment.
        run_id: the run that it is an output of.
        name: of a new logged model.
        tags: its tags; `iris.key` among them identifies it.
        policy: what it holds: the adapter's files, or a reference to the model's folder.
    """
    model = _get_or_create_logged_model(client, experiment, run_id, name, tags)
    if model.status != LoggedModelStatus.READY or not _is_whole(client, model, policy):
        for file in sorted(policy.adapter.path.iterdir()) if policy.adapter else ():
            client.log_model_artifact(model.model_id, str(file))
        with tempfile.TemporaryDirectory() as folder:
            description = Path(folder) / DESCRIPTION
            _describe(model, run_id, tags).save(str(description))
            client.log_model_artifact(model.model_id, str(description))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    log_output(client, run_id, model.model_id, step=0)
    return model


def get_or_create_version(
    client: Client, name: str, model: LoggedModel, tags: Mapping[str, str], description: str
) -> ModelVersion:
    """The version of the registered model `name` with the key in `tags`, created if missing, with these tags.

    The tag `parent_version` never changes. The path of the weights may change, and the scores of an initial model.
    """
    get_or_create_registered_model(client, name)
    version = _get_or_create_model_version(client, name, model, tags, description)
    _update_tags(client, version, tags)
    link = json.dumps([{"name": name, "version": int(version.version)}])
    if client.get_logged_model(model.model_id).tags.get(VERSIONS_TAG) != link:
        client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: link})
    return version


@repeatable
def get_or_create_registered_model(client: Client, name: str) -> None:
    """Creates the registered model `name` if it is missing."""
    try:
        client.create_registered_model(name, dict([OURS]))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def versions(client: Client, name: str) -> list[ModelVersion]:
    """All versions of the registered model `name`, oldest first."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f'name = "{name}"', max_results=100, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def may_have_version(tags: Mapping[str, str], known: Sequence[ModelVersion]) -> bool:
    """Whether a model may become a version: an initial model as the first one only, or it would be `@latest`.

    Args:
        tags: of the version.
        known: the versions that exist.
    """
    keys = {version.tags.get(KEY) for version in known}
    return tags["iteration"] != INITIAL or not known or tags[KEY] in keys


@repeatable
def promote_if_better(client: Client, version: ModelVersion, measures: Measures) -> Verdict:
    """Lets `version` challenge the champion; tags it with the reason and moves the alias if it wins.

    The notes come first, then the alias, and last the tag that the challenge is over. An interrupted challenge is
    repeated as a whole. One that is over is not repeated, so that the choice of a person stays.
    """
    version = client.get_model_version(version.name, version.version)
    champion, note = champion_of(client, version.name), version.tags.get(NOTE, "")
    if JUDGED in version.tags:
        is_champion = champion is not None and champion.version == version.version
        return again(note, is_champion or (champion is not None and note.startswith(FORMER)))
    verdict = _challenge(client, version, champion, measures)
    if champion is None or champion.version != version.version:
        client.set_model_version_tag(version.name, version.version, NOTE, verdict.note)
        if verdict.wins and champion is not None:
            former = f"{FORMER} version {version.version}"
            client.set_model_version_tag(version.name, champion.version, NOTE, former)
        if verdict.wins:
            client.set_registered_model_alias(version.name, CHAMPION, version.version)
    client.set_model_version_tag(version.name, version.version, JUDGED, "true")
    return verdict


def champion_of(client: Client, name: str) -> ModelVersion | None:
    """The version with the alias `champion`, or None."""
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    return client.get_model_version_by_alias(name, CHAMPION)


def weights_of(version: ModelVersion) -> str:
    """Identifies the weights of a version."""
    return policy_digest(version.tags.get("model_digest", ""), version.tags.get("adapter_digest"))


def read_measures(client: Client, version: ModelVersion) -> Measures | None:
    """What a version scored, from its run; None if the run or its measures are missing or damaged."""
    run = version.tags.get(RUN)
    if run is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            if MEASURES in {item.path for item in client.list_artifacts(run)}:
                client.download_artifacts(run, MEASURES, folder)
        except FileNotFoundError:  # a dead link
            return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return _measures_in(Path(folder) / MEASURES)


def _measures_in(file: Path) -> Measures | None:
    """The measures in `file`; None if it is missing or damaged. Earlier versions wrote them without a digest."""
    content = read_sealed(file)
    try:
        return Measures.model_validate_json(file.read_text("utf-8")) if content is None else Measures(**content)
    except (OSError, ValueError):  # a file with a wrong digest is refused, too: that field is unknown
        return None


def _challenge(client: Client, version: ModelVersion, champion: ModelVersion | None, measures: Measures) -> Verdict:
    """Whether `version` is, or becomes, the champion."""
    if champion is None:
        return first_champion(measures, version.tags.get("iteration") == INITIAL)
    if champion.version == version.version:
        return again(version.tags.get(NOTE, CHAMPION), champion=True)
    held = _champion_measures(client, champion, version, measures)
    return challenge(measures, held, f"version {champion.version}")


def _champion_measures(
    client: Client, champion: ModelVersion, version: ModelVersion, measures: Measures
) -> Measures | None:
    """What the champion scored.

    The initial model has no log-probs of its own: they come from a version that was trained against it.
    """
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


@repeatable
def _get_or_create_logged_model(
    client: Client, experiment: str, run_id: str, name: str, tags: Mapping[str, str]
) -> LoggedModel:
    """The logged model with the key in `tags`: a finished one, else the oldest. Other unfinished ones are deleted."""

    def find() -> list[LoggedModel]:
        found = client.search_logged_models([experiment], f"tags.`{KEY}` = '{tags[KEY]}'")
        return sorted(found, key=lambda model: (not _is_ready(model), model.creation_timestamp))

    found = find()
    if not found:
        client.create_logged_model(experiment, name, run_id, dict(tags), model_type=MODEL_TYPE)
        found = find()
    first, *others = found
    for model in others:
        if not _is_ready(model):
            client.delete_logged_model(model.model_id)
    return first


@repeatable
def _get_or_create_model_version(
    client: Client, name: str, model: LoggedModel, tags: Mapping[str, str], description: str
) -> ModelVersion:
    """The version with the key in `tags`: the champion, else the oldest. Others are deleted."""

    def find() -> list[ModelVersion]:
        found = [each for each in versions(client, name) if each.tags.get(KEY) == tags[KEY]]
        champion = champion_of(client, name)
        return sorted(found, key=lambda each: champion is None or each.version != champion.version)

    found = find()
    if not found:
        client.create_model_version(
            name,
            f"models:/{model.model_id}",
            model.source_run_id,
            dict(tags),
            description=description,
            model_id=model.model_id,
        )
        found = find()
    first, *others = found
    for double in others:
        client.delete_model_version(name, double.version)
    return first


def _is_ready(model: LoggedModel) -> bool:
    return bool(model.status == LoggedModelStatus.READY)


def _is_whole(client: Client, model: LoggedModel, policy: Policy) -> bool:
    """Whether MLflow still has the model's files as they were uploaded."""
    kept = {item.path for item in client.list_logged_model_artifacts(model.model_id)}
    if DESCRIPTION not in kept or policy.adapter is None:
        return DESCRIPTION in kept
    with tempfile.TemporaryDirectory() as folder:
        return Artifact.of(_download(client, model, folder)).digest == policy.adapter.digest


@repeatable
def _download(client: Client, model: LoggedModel, folder: str) -> Path:
    where = client.tracking_uri
    uri = f"models:/{model.model_id}"
    return Path(download_artifacts(uri, dst_path=folder, tracking_uri=where, registry_uri=where))


@repeatable
def _update_tags(client: Client, version: ModelVersion, tags: Mapping[str, str]) -> None:
    place = (version.name, version.version)
    held = client.get_model_version(*place).tags
    for name, value in tags.items():
        if held.get(name) != value and name != "parent_version":
            client.set_model_version_tag(*place, name, value)
    for name in SCORE_TAGS:
        if name in held and name not in tags:
            client.delete_model_version_tag(*place, name)


def _describe(model: LoggedModel, run_id: str, tags: Mapping[str, str]) -> Model:
    description = Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id)
    described = {name: tags[name] for name in ("model_path", "model_digest", "adapter_digest", "dtype") if name in tags}
    description.add_flavor("iris", loader_module="iris_core.load", **described)
    return description
