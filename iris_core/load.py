"""Loads a registered version for inference.

    from iris_core.load import load_model
    model, tokenizer = load_model("models:/demo@champion")

The version's tags name the base model that it was trained on: its path and its digest. A base with another digest is
refused, because an adapter on another base gives wrong answers that look right.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from peft.utils.constants import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iris_core import tracking
from iris_core.common.errors import ConfigError, ModelError
from iris_core.common.redaction import redact
from iris_core.common.uris import sqlite_file
from iris_core.modeling import loading
from iris_core.store import Artifact, Policy

ADAPTER_FILES = {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME}
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")


def load_model(
    uri: str,
    tracking_uri: str | None = None,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a registered version, its adapter applied, ready to generate, and its tokenizer.

    Args:
        uri: `models:/<name>@champion`, `models:/<name>@latest` or `models:/<name>/<version>`.
        tracking_uri: where MLflow is; None: the environment variable MLFLOW_TRACKING_URI.
        base: folder of the base model, if it has moved since training.
        dtype: "bfloat16" or "float32"; None: as in training.
        trust_remote_code: run Python code from the folder of the base model.

    Returns:
        The model, on this machine's accelerator if it has one, in evaluation mode.
        The tokenizer with its chat template.

    Raises:
        ConfigError: no tracking URI, or there is no such version.
        ModelError: the base model or the adapter is missing, or differs from the recorded one.
        ServiceError: MLflow does not answer.
    """
    where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not where:
        raise ConfigError("tracking_uri: not given: pass it, or set MLFLOW_TRACKING_URI (the report names it)")
    tags = version_tags(uri, where)
    with tempfile.TemporaryDirectory() as folder:
        adapter = _adapter(uri, where, tags, Path(folder))
        policy = Policy(model=_base(tags, base), adapter=adapter)
        dtype = dtype or loading.resolve_dtype(tags.get("dtype", "auto"))
        model = loading.load_policy(policy, dtype, trust_remote_code=trust_remote_code)
    return model, loading.load_tokenizer(policy.model.path, trust_remote_code)


def version_tags(uri: str, tracking_uri: str) -> dict[str, str]:
    """The tags of the version at `uri`: its order, gap, scores, digests and lineage.

    Raises:
        ConfigError: there is no such version.
        ServiceError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    if tracking_uri.startswith("sqlite:") and not (file := sqlite_file(tracking_uri)).exists():
        raise ConfigError(
            f"tracking_uri: there is no database {file.absolute()}: correct the path (the report names it)"
        )
    client = tracking.connect(tracking_uri)
    with tracking.service_errors(tracking_uri):
        try:
            name, alias, number = _parse(uri)
            version = (
                client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
            )
        except (MlflowException, ValueError) as error:
            if isinstance(error, MlflowException) and error.error_code not in UNKNOWN:
                raise
            known = sorted(model.name for model in client.search_registered_models())
            raise ConfigError(
                f"{uri}: there is no such version at {redact(tracking_uri)}: write models:/<name>@champion, @latest or "
                f"/<version>; models there: {', '.join(known) or 'none'}"
            ) from error
    if "model_digest" not in version.tags:
        raise ModelError(f"{uri} was not registered by IRIS: it does not say which base model it belongs to")
    return dict(version.tags)


def _parse(uri: str) -> tuple[str, str | None, str]:
    """Name, alias and version number in `uri`; ValueError if it is not the URI of a version."""
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+)|/(latest))", uri)
    if found is None:
        raise ValueError(uri)
    name, alias, number, latest = found.groups()
    return name, alias or latest, number or ""


def _base(tags: dict[str, str], given: Path | None) -> Artifact:
    """The folder of the base model (for full fine-tuning: of the trained model), checked against its digest."""
    folder = Path(given or tags["model_path"]).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"the base model is not at {folder} any more: give its folder as `base` (SHA-256 {tags['model_digest']})"
        )
    found = Artifact.of(folder)
    if found.digest != tags["model_digest"]:
        raise ModelError(
            f"{folder} is not the base model this version was trained on: its digest is {found.digest[:16]}…, recorded "
            f"is {tags['model_digest'][:16]}…: give the folder of the recorded one as `base`"
        )
    return found


def _adapter(uri: str, tracking_uri: str, tags: dict[str, str], folder: Path) -> Artifact | None:
    """The version's adapter, downloaded into `folder`, checked against its digest; None for full weights."""
    if "adapter_digest" not in tags:
        return None
    from mlflow.artifacts import download_artifacts

    again = f"delete the run {tags.get('run')} in MLflow and run the recipe again, which registers it again"
    with tracking.service_errors(tracking_uri):
        path = Path(download_artifacts(uri, dst_path=str(folder), tracking_uri=tracking_uri, registry_uri=tracking_uri))
    if missing := sorted(ADAPTER_FILES - {file.name for file in path.glob("*")}):
        raise ModelError(f"{uri}: MLflow has lost {' and '.join(missing)} of the adapter: {again}")
    found = Artifact.of(path)
    if found.digest != tags["adapter_digest"]:
        raise ModelError(f"{uri}: the adapter in MLflow has changed since it was registered: {again}")
    return found
