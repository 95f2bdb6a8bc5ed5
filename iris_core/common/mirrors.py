"""Mirrors: the folder on this machine for a store that is kept in S3. It has the layout of a local store.

    local_root("s3://bucket/prefix")      # <cache>/stores/s3+bucket+prefix
    uri_of(local_root("s3://bucket/a"))   # "s3://bucket/a"

The folder's name says which bucket it belongs to, so a path inside it is enough to find its copy in the bucket.
"""

from __future__ import annotations

import re
from pathlib import Path

from iris_core.common.cache import cache_folder

SCHEME = "s3://"
STORES = "stores"  # below the cache folder
LONGEST_NAME = 255  # bytes of a folder's name
_PREFIX, _SEPARATOR = "s3+", "+"
_PART = re.compile(r"(?!\.+$)[A-Za-z0-9._-]+")


def is_remote(store: str | Path) -> bool:
    """Whether `store` is an S3 URI."""
    return isinstance(store, str) and store.lower().startswith("s3:")


def problem(uri: str) -> str | None:
    """What is wrong with an S3 URI as a store, and the remedy; None if nothing is."""
    parts = uri.removeprefix(SCHEME).rstrip("/").split("/")
    if not uri.startswith(SCHEME) or not all(map(_PART.fullmatch, parts)):
        return "is no S3 store: write s3://bucket/prefix, with letters, digits, dots, dashes and underscores"
    if len(_name(uri)) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} characters: choose a shorter prefix"
    return None


def local_root(store: str | Path) -> Path:
    """The folder of `store` on this machine: itself, or the mirror of an S3 URI."""
    if is_remote(store):
        return cache_folder() / STORES / _name(str(store))
    return Path(store).expanduser().absolute()


def uri_of(root: Path) -> str | None:
    """The S3 URI that the folder `root` is a mirror of; None if it is none."""
    if root.parent.name != STORES or not root.name.startswith(_PREFIX):
        return None
    return SCHEME + root.name.removeprefix(_PREFIX).replace(_SEPARATOR, "/")


def split(path: Path) -> tuple[Path, str] | None:
    """The mirror that `path` is in, and its name relative to that; None if it is in none."""
    for root in path.parents:
        if uri_of(root):
            return root, path.relative_to(root).as_posix()
    return None


def here(path: Path) -> Path:
    """Where `path` is on this machine: in its own mirror, if it is in one of a machine with another cache folder."""
    found = split(path)
    return cache_folder() / STORES / found[0].name / found[1] if found else path


def _name(uri: str) -> str:
    return _PREFIX + uri.removeprefix(SCHEME).rstrip("/").replace("/", _SEPARATOR)
