"""The files of data sets on the Hugging Face hub, at a commit. Without a network, those in the cache."""

from __future__ import annotations

import contextlib
import glob
from pathlib import Path

from iris_core.data import hub


def commit_of(name: str, revision: str | None) -> str:
    """The current commit of `revision` (None: the main branch) of a data set; offline, the commit in the cache.

    Raises:
        DataError: the hub refuses.
        ServiceError: the hub does not answer.
    """
    commit = hub.resolve_revision("dataset", name, revision)
    if commit != revision:
        with contextlib.suppress(OSError):  # a note for runs without a network; the cache may be read-only
            note = _cached(name) / "refs" / (revision or "main")
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(commit)
    return commit


def list_files(name: str, commit: str) -> tuple[list[str], Path | None, bool]:
    """The names of all files of a data set at a commit, its README, and whether the list is known to be complete.

    Raises:
        DataError, ServiceError: as `commit_of`.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _download(name, commit, ["README.md"])
    readme = folder / "README.md" if (folder / "README.md").is_file() else None
    try:
        tree = get_cached_repo_tree(name, repo_type="dataset", revision=commit, cache_dir=hub.cache())
        return [file.path for file in tree], readme, True
    except CachedRepoTreeNotFoundError:  # another library has filled the cache, and there is no network
        files = [file for file in folder.rglob("*") if file.is_file()]
        return [file.relative_to(folder).as_posix() for file in files], readme, False


def fetch(name: str, commit: str, files: list[str]) -> list[Path]:
    """Downloads `files` of a data set, unless they are in the cache, and returns their paths.

    Raises:
        DataError, ServiceError: as `commit_of`.
        ConfigError: the cache cannot be written.
    """
    folder = _download(name, commit, [glob.escape(file) for file in files])
    return [folder / file for file in files]


def _download(name: str, commit: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with hub.handle_errors("dataset", name, commit):
        folder = snapshot_download(
            name,
            repo_type="dataset",
            revision=commit,
            allow_patterns=patterns,
            cache_dir=hub.cache(),
        )
    return Path(folder)


def _cached(name: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return hub.cache() / str(repo_folder_name(repo_id=name, repo_type="dataset"))
