"""Whether the registered model of an experiment can take its versions: checked before anything is trained.

MLflow's client takes seconds to import, so that this works without it. Databases other than SQLite cannot be asked that
way: there, the stage `register` of the initial model fails instead.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from iris_core.common.errors import ConfigError, ServiceError
from iris_core.common.redaction import redact
from iris_core.common.uris import sqlite_file
from iris_core.tracking.connection import AWAY, answered, ask, query

KEY = "iris.key"  # the tag of every version that IRIS makes
OURS = ("iris", "self-play")  # the tag of every registered model that IRIS makes
PROMPT = "mlflow.prompt.is_prompt"
DELETED = "Deleted_Internal"  # the stage of a version that was deleted, whose row SQLite keeps
REMEDY = "give another name"


class Registered(NamedTuple):
    """What MLflow holds under a name: the registered model's tags, whether it has versions, whether one is by IRIS."""

    tags: dict[str, str]
    used: bool = False
    ours: bool = False


def check_registered_model(uri: str, name: str) -> None:
    """Raises an error if versions of the registered model `name` cannot be created at `uri`.

    Raises:
        ConfigError: the name is that of a prompt or of models that IRIS did not make, or it may not be written.
        ServiceError: the server does not answer, or the database is locked.
    """
    if uri.startswith("sqlite:"):
        found = _in_database(uri, name)
    elif uri.startswith("http"):
        found = _on_server(uri, name)
    else:
        return
    if found and found.tags.get(PROMPT) == "true":
        raise _refusal(uri, name, "is a prompt")
    if found and found.used and not found.ours and OURS not in found.tags.items():
        raise _refusal(uri, name, "has versions that IRIS did not make")
    if found and uri.startswith("http"):
        _may_write(uri, name)


def _refusal(uri: str, name: str, what: str) -> ConfigError:
    return ConfigError(f"tracking.registered_model: {name!r} at {redact(uri)} {what}: {REMEDY}")


def _in_database(uri: str, name: str) -> Registered | None:
    """What SQLite holds; None for a missing file or table."""
    file = sqlite_file(uri)
    try:
        if not query(file, "ro", "select 1 from registered_models where name = ?", name):
            return None
        tags = query(file, "ro", "select key, value from registered_model_tags where name = ?", name)
        live = "select version from model_versions where name = ? and current_stage != ?"
        versions = query(file, "ro", live, name, DELETED)
        ours = f"select 1 from model_version_tags where name = ? and key = '{KEY}' limit 1"
        return Registered(dict(tags), bool(versions), bool(query(file, "ro", ours, name)))
    except sqlite3.Error:
        return None


def _on_server(uri: str, name: str) -> Registered | None:
    answer = ask(uri, "registered-models/get", {"name": name})
    _raise_for_status(uri, name, answer.status_code, "read")
    if not answer.is_success:
        return None
    model = answered(uri, answer, "registered_model")
    latest = model.get("latest_versions", [])
    tags = {tag["key"]: tag.get("value", "") for tag in model.get("tags", [])}
    ours = any(tag["key"] == KEY for version in latest for tag in version.get("tags", []))
    return Registered(tags, bool(latest), ours)


def _may_write(uri: str, name: str) -> None:
    """Tries to write: sets the tag that every registered model of IRIS has, which changes nothing."""
    key, value = OURS
    asked = {"name": name, "key": key, "value": value}
    answer = ask(uri, "registered-models/set-tag", asked, "POST")
    _raise_for_status(uri, name, answer.status_code, "change")


def _raise_for_status(uri: str, name: str, status: int, what: str) -> None:
    if status in AWAY:
        raise ServiceError(f"tracking.uri: MLflow at {redact(uri)} failed (status {status})")
    if status in (401, 403):
        raise ConfigError(
            f"tracking.registered_model: these credentials may not {what} {name!r} at {redact(uri)} ({status}): "
            f"ask for the permission EDIT, or {REMEDY}"
        )
