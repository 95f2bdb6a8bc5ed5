"""The Hugging Face hub: the current commit of a name, and one clear error for each way in which the hub can refuse.

    commit = resolve_revision("model", "Qwen/Qwen2.5-0.5B-Instruct")

A name never enters a key: stages name what they read by its commit. With HF_HUB_OFFLINE=1 that is the commit in the
cache. Imports no torch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iris_core.common.disk import FULL
from iris_core.common.errors import (
    ConfigError,
    DataError,
    EvaluationError,
    IrisError,
    ModelError,
    ServiceError,
)
from iris_core.config import ModelPart

Kind = Literal["model", "dataset", "benchmark"]
TIMEOUT_S = 5.0
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Request:
    """A request to the hub, and the wording of its errors."""

    kind: Kind
    name: str
    revision: str | None = None

    @property
    def type(self) -> str:
        """The hub's name for this kind of repository."""
        return "model" if self.kind == "model" else "dataset"

    @property
    def what(self) -> str:
        """The name of this kind for people."""
        return "model" if self.kind == "model" else "data set"

    @property
    def field(self) -> str:
        """The part of a recipe that names the repository."""
        return {"model": "model", "dataset": "data", "benchmark": "evaluation"}[self.kind]

    @property
    def page(self) -> str:
        """The address of its page on the hub."""
        prefix = "" if self.kind == "model" else "datasets/"
        return f"{_constants().ENDPOINT}/{prefix}{self.name}"

    def error(self, text: str, key: str = "path") -> IrisError:
        """An error of the class for this kind; a retry does not help."""
        key = "benchmarks" if self.kind == "benchmark" else key
        cls = {"model": ModelError, "dataset": DataError, "benchmark": EvaluationError}[self.kind]
        return cls(f"{self.field}.{key}: {text}")


def is_name(text: str) -> bool:
    """Whether `text` has the form of a name on the hub: `name` or `organisation/name`, dots allowed."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def local_folder(model: ModelPart) -> Path | None:
    """The folder that `model.path` names; None: it is a name on the hub.

    Raises:
        ModelError: it is a path, and leads to no folder; or a folder is given a revision.
    """
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if model.revision is not None:
            raise ModelError(
                f"model.revision: {model.path} is a folder, which has no revisions: leave model.revision out"
            )
        return folder
    if folder.exists() or folder.is_absolute() or model.path.startswith((".", "~")):
        raise ModelError(f"model.path: there is no folder {folder}: give a folder with safetensors, or a hub name")
    return None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids requests to the hub."""
    return bool(_constants().HF_HUB_OFFLINE)


def cache() -> Path:
    """The folder with downloads from the hub."""
    return Path(_constants().HF_HUB_CACHE)


def resolve_revision(kind: Kind, name: str, revision: str | None = None) -> str:
    """The current commit of `revision` (None: the main branch) of `name`; offline, the commit in the cache.

    Args:
        kind: the model, the annotated data set, or a data set of a benchmark; decides the class of errors.
        name: its name on the hub.
        revision: branch, tag or commit.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        ModelError, DataError, EvaluationError: missing, private, gated, without this revision, or not cached.
        ServiceError: the hub does not answer, or limits the rate.
    """
    request = _Request(kind, name, revision)
    if not is_name(name):
        raise request.error(
            f"{name!r} is no name on the hub (name or organisation/name): correct it, or give a local path that exists"
        )
    if is_offline():
        return _cached_commit(request)
    from huggingface_hub import HfApi

    with handle_errors(kind, name, revision):
        api = HfApi(endpoint=_constants().ENDPOINT)
        found = api.repo_info(name, repo_type=request.type, revision=revision, timeout=TIMEOUT_S)
        if getattr(found, "gated", False):  # a gated repository shows its commits to everybody
            api.auth_check(name, repo_type=request.type)
        return str(found.sha)


def download(name: str, revision: str | None, commit: str, patterns: list[str]) -> Path:
    """Downloads the files of model `name` at `commit` that match `patterns`, and returns their folder.

    Args:
        name: its name on the hub.
        revision: the branch or tag that `commit` was resolved from, noted in the cache for runs without a network.
        commit: 40 hexadecimal digits.
        patterns: globs of file names.

    Raises:
        ModelError: the hub refuses.
        ConfigError: the cache cannot be written.
        ServiceError: the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    with handle_errors("model", name, commit):
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=patterns))
    with contextlib.suppress(OSError):  # the cache may be read-only
        note = folder.parents[1] / "refs" / (revision or "main")
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(commit)
    return folder


@contextlib.contextmanager
def handle_errors(kind: Kind, name: str, revision: str | None = None) -> Iterator[None]:
    """Turns errors of the hub's library about `name` into the errors of `resolve_revision`."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError

    try:
        yield
    except (HfHubHTTPError, EntryNotFoundError, HTTPError, OSError) as error:
        answer = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        raise _explain(_Request(kind, name, revision), answer) from error


def cache_error(error: OSError) -> IrisError:
    """The error for a cache of the Hugging Face libraries that cannot be written. It names the folder and HF_HOME."""
    place = error.filename or cache()
    cause = "its disk is full" if error.errno in FULL else error.strerror or str(error)
    return ConfigError(
        f"HF_HOME: the cache of the Hugging Face libraries cannot be written at {place} ({cause}): set HF_HOME to a "
        "folder that can be, on a disk with space"
    )


def _cached_commit(request: _Request) -> str:
    from huggingface_hub.file_download import repo_folder_name

    home = cache() / repo_folder_name(repo_id=request.name, repo_type=request.type)
    wanted, note = request.revision or "main", home / "refs" / (request.revision or "main")
    commit = note.read_text().strip() if note.is_file() else wanted
    held = [path.name for path in home.glob("snapshots/*") if COMMIT.fullmatch(path.name)]
    if commit in held:
        return commit
    if request.revision is None and len(held) == 1:  # it was downloaded by commit, so no branch is noted
        return held[0]
    raise _not_cached(request)


def _not_cached(request: _Request) -> IrisError:
    return request.error(
        f"{request.name} (revision {request.revision or 'main'}) is not complete in the cache {cache()}, and "
        "HF_HUB_OFFLINE forbids to download it: unset HF_HUB_OFFLINE, or give a local path"
    )


def _explain(request: _Request, error: Exception) -> IrisError:
    from huggingface_hub import errors

    name, endpoint = request.name, _constants().ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return request.error(f"{name} is gated: ask for access at {request.page}, then `hf auth login`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return request.error(
            f"there is no {request.what} {name} on {endpoint}, or it is private: correct the name, or `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return request.error(
            f"{name} has no revision {request.revision!r}: {request.page}/tree/main lists its branches and tags",
            "revision",
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _refused(request, error.response.status_code, str(error.server_message or ""))
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return cache_error(error)
    if is_offline():
        return _not_cached(request)
    return ServiceError(
        f"{request.field}: the Hugging Face hub ({endpoint}) cannot be reached for the {request.what} {name}: run "
        "again with a network, set HF_HUB_OFFLINE=1 to use what is cached, or give a local path"
    )


def _refused(request: _Request, status: int, said: str) -> IrisError:
    name, endpoint = request.name, _constants().ENDPOINT
    if status == 429:
        return ServiceError(
            f"{request.field}: {endpoint} limits the rate of requests (429) for {name}: wait some minutes, or "
            "`hf auth login` for a higher limit"
        )
    if status >= 500:
        return ServiceError(f"{request.field}: {endpoint} fails ({status}) for {name}: run again later")
    if status == 401:
        return request.error(f"{endpoint} refuses the token ({status}) for {name}: `hf auth login`, or unset HF_TOKEN")
    return request.error(f"{endpoint} refuses {name} ({status}: {said or 'no reason given'}): see {request.page}")


def _constants() -> Any:
    from huggingface_hub import constants

    return constants
