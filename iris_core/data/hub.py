"""The Hugging Face hub: which commit a name means now, and one plain error for each way in which it can refuse.

    commit = resolve_revision("model", "Qwen/Qwen2.5-0.5B-Instruct")

A name is never a key: what a stage reads is named by its commit. With HF_HUB_OFFLINE=1 that is the commit in the cache.
Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Asked:
    """What is asked of the hub, and how its errors are worded."""

    kind: Kind
    name: str
    revision: str | None = None

    @property
    def type(self) -> str:
        """What the hub calls it."""
        return "model" if self.kind == "model" else "dataset"

    @property
    def what(self) -> str:
        """What people call it."""
        return "model" if self.kind == "model" else "data set"

    @property
    def field(self) -> str:
        """The part of a recipe that names it."""
        return {"model": "model", "dataset": "data", "benchmark": "evaluation"}[self.kind]

    @property
    def page(self) -> str:
        """Its page on the hub."""
        prefix = "" if self.kind == "model" else "datasets/"
        return f"{_constants().ENDPOINT}/{prefix}{self.name}"

    def error(self, text: str, key: str = "path") -> IrisError:
        """The error of this kind, which a retry does not help."""
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
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to ask the hub."""
    return bool(_constants().HF_HUB_OFFLINE)


def cache() -> Path:
    """The folder with what was downloaded from the hub."""
    return Path(_constants().HF_HUB_CACHE)


def resolve_revision(kind: Kind, name: str, revision: str | None = None) -> str:
    """The commit that `revision` (None: the main branch) of `name` means now; offline, the one in the cache.

    Args:
        kind: what it is: the model, the annotated data set, or a data set of a benchmark. Decides the error's class.
        name: its name on the hub.
        revision: branch, tag or commit.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        ModelError, DataError, EvaluationError: missing, private, gated, without this revision, or not cached (by `kind`).
        ServiceError: the hub does not answer, or limits the rate.
    """
    asked = _Asked(kind, name, revision)
    if not is_name(name):
        raise asked.error(
            f"{name!r} is no name on the hub (name or organisation/name): correct it, or give a local path that exists"
        )
    if is_offline():
        return _cached_commit(asked)
    from huggingface_hub import HfApi

    with handle_errors(kind, name, revision):
        api = HfApi(endpoint=_constants().ENDPOINT)
        found = api.repo_info(name, repo_type=asked.type, revision=revision, timeout=TIMEOUT_S)
        if getattr(found, "gated", False):  # what is gated tells everybody its commits
            api.auth_check(name, repo_type=asked.type)
        return str(found.sha)


def download(name: str, revision: str | None, commit: str, patterns: list[str]) -> Path:
    """The local folder with the files of model `name` at `commit` that match `patterns`; `revision` is what was asked for.

    Raises:
        ModelError: the hub refuses. ConfigError: the cache cannot be written. ServiceError: the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    with handle_errors("model", name, commit):
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=patterns))
    with contextlib.suppress(OSError):  # a cache that is only read; the note is for later, without a network
        note = folder.parents[1] / "refs" / (revision or "main")
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(commit)
    return folder


@contextlib.contextmanager
def handle_errors(kind: Kind, name: str, revision: str | None = None) -> Iterator[None]:
    """Turns what the hub's library raises about `name` into the errors of `resolve_revision`."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError

    try:
        yield
    except (HfHubHTTPError, EntryNotFoundError, HTTPError, OSError) as error:
        answer = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        raise _explain(_Asked(kind, name, revision), answer) from error


def cache_error(error: OSError) -> IrisError:
    """The error for a cache of the Hugging Face libraries that cannot be written; names the folder and HF_HOME."""
    place = error.filename or cache()
    cause = "its disk is full" if error.errno in NO_SPACE else error.strerror or str(error)
    return ConfigError(
        f"HF_HOME: the cache of the Hugging Face libraries cannot be written at {place} ({cause}): set HF_HOME to a folder that "
        "can be, on a disk with space"
    )


def _cached_commit(asked: _Asked) -> str:
    from huggingface_hub.file_download import repo_folder_name

    home = cache() / repo_folder_name(repo_id=asked.name, repo_type=asked.type)
    wanted, note = asked.revision or "main", home / "refs" / (asked.revision or "main")
    commit = note.read_text().strip() if note.is_file() else wanted
    held = [path.name for path in home.glob("snapshots/*") if COMMIT.fullmatch(path.name)]
    if commit in held:
        return commit
    if asked.revision is None and len(held) == 1:  # read by commit, so that no branch was noted
        return held[0]
    raise _not_cached(asked)


def _not_cached(asked: _Asked) -> IrisError:
    return asked.error(
        f"{asked.name} (revision {asked.revision or 'main'}) is not complete in the cache {cache()}, and HF_HUB_OFFLINE forbids "
        "to download it: unset HF_HUB_OFFLINE, or give a local path"
    )


def _explain(asked: _Asked, error: Exception) -> IrisError:
    from huggingface_hub import errors

    name, endpoint = asked.name, _constants().ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return asked.error(f"{name} is gated: ask for access at {asked.page}, then `hf auth login`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return asked.error(
            f"there is no {asked.what} {name} on {endpoint}, or it is private: correct the name, or `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return asked.error(
            f"{name} has no revision {asked.revision!r}: {asked.page}/tree/main lists its branches and tags", "revision"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _refused(asked, error.response.status_code, str(error.server_message or ""))
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return cache_error(error)
    if is_offline():
        return _not_cached(asked)
    return ServiceError(
        f"{asked.field}: the Hugging Face hub ({endpoint}) cannot be reached for the {asked.what} {name}: run again with a "
        "network, set HF_HUB_OFFLINE=1 to use what is cached, or give a local path"
    )


def _refused(asked: _Asked, status: int, said: str) -> IrisError:
    name, endpoint = asked.name, _constants().ENDPOINT
    if status == 429:
        return ServiceError(
            f"{asked.field}: {endpoint} limits the rate of requests (429) for {name}: wait some minutes, or `hf auth login` for "
            "a higher limit"
        )
    if status >= 500:
        return ServiceError(f"{asked.field}: {endpoint} fails ({status}) for {name}: run again later")
    if status == 401:
        return asked.error(f"{endpoint} refuses the token ({status}) for {name}: `hf auth login`, or unset HF_TOKEN")
    return asked.error(f"{endpoint} refuses {name} ({status}: {said or 'no reason given'}): see {asked.page}")


def _constants() -> Any:
    from huggingface_hub import constants

    return constants
