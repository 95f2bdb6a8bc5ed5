"""Finds out which files of a data set belong to which subset and split, by the rules of the Hugging Face hub.

The `configs` of a README come first. Otherwise file names decide: `data/<split>-00000-of-00003.parquet`, or `train`,
`validation`, `test` and their synonyms in the name of a file or folder. Otherwise everything is `train`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml
from fsspec.utils import glob_translate

from iris_core.common.errors import DataError
from iris_core.data import rows

METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
SHARD = re.compile(r"data/([\w.-]+?)-\d{5}-of-\d{5}")
KEYWORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclass
class Layout:
    """Subsets of a data set, each with the files of its splits.

    Attributes:
        subsets: names of files, by subset and split, sorted.
        default: the subset for users who name none; None: there are several, and none is marked as the default.
        unread: data files that belong to no split.
    """

    subsets: dict[str, dict[str, list[str]]]
    default: str | None
    unread: list[str] = field(default_factory=list)


def data_names(names: list[str]) -> list[str]:
    """The data files among `names` (relative, with "/"), sorted: of a known type, not hidden, not metadata."""
    return sorted(
        name
        for name in names
        if rows.readable(name)
        and PurePosixPath(name).name not in METADATA
        and not any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)
    )


def layout(names: list[str], readme: str | None) -> Layout:
    """The subsets and splits of a data set with the files `names`.

    Raises:
        DataError: the README's description cannot be understood.
    """
    names = data_names(names)
    declared = _declared(readme)
    if not declared:
        splits, unread = _by_name(names)
        return Layout({"default": splits}, "default", unread)
    subsets = {str(each.get("config_name", "default")): _files(each, names) for each in declared}
    marked = [str(each["config_name"]) for each in declared if each.get("default")]
    usual = [name for name in subsets if name == "default" or len(subsets) == 1]
    return Layout(subsets, next(iter([*marked, *usual]), None))


def choose(found: Layout, subset: str | None, split: str, where: str) -> list[str]:
    """The files of a subset and split.

    Raises:
        DataError: there is no such subset or split; the message names those that exist.
    """
    name = subset or found.default
    if name is None:
        raise DataError(f"{where} has the subsets {', '.join(map(repr, found.subsets))}: set data.name")
    if name not in found.subsets:
        raise DataError(f"{where} has no subset {name!r}; it has {', '.join(map(repr, found.subsets))}: set data.name")
    splits = found.subsets[name]
    if not any(splits.values()):
        raise DataError(f"{where} holds no data files: {', '.join(rows.READERS)} can be read")
    check_split(split, splits, where)
    return splits[split]


def check_split(split: str | None, splits: Collection[str], where: str) -> None:
    """Raises DataError if `split` is not in `splits`."""
    if split not in splits:
        known = ", ".join(map(repr, dict.fromkeys(splits)))
        raise DataError(f"{where} has no split {split!r}; it has {known}: set data.split")


def _by_name(names: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The files of each split, and the files that belong to none."""
    splits: dict[str, list[str]] = {}
    others = []
    for name in names:
        split = _split_of(name)
        if split is None:
            others.append(name)
        else:
            splits.setdefault(split, []).append(name)
    if "train" in splits:
        return splits, others
    return {**({"train": others} if others else {}), **splits}, []


def _split_of(name: str) -> str | None:
    if shard := SHARD.match(name):
        return shard[1]
    path = PurePosixPath(name.lower())
    for part in (path.name.partition(".")[0], *(folder.name for folder in path.parents)):
        for word in re.split(r"[^a-z]+", part):
            if word in KEYWORDS:
                return KEYWORDS[word]
    return None


def _declared(readme: str | None) -> list[dict[str, Any]]:
    """The `configs` in the YAML at the start of a README."""
    head = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", readme or "", re.DOTALL)
    try:
        content = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise DataError(f"README.md: its head is not YAML: {' '.join(str(error).split())}") from error
    found = content.get("configs") if isinstance(content, dict) else None
    return [each for each in found or () if isinstance(each, dict)]


def _files(declared: dict[str, Any], names: list[str]) -> dict[str, list[str]]:
    """The files of each split of one of the README's configs."""
    folder = str(declared.get("data_dir") or "").strip("/.")
    prefix = f"{folder}/" if folder else ""
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    patterns = declared.get("data_files")
    if patterns is None:
        found = _by_name(inside)[0]
    else:
        found = {split: _matching(globs, inside) for split, globs in _patterns(patterns).items()}
    return {split: [prefix + name for name in files] for split, files in found.items()}


def _patterns(value: Any) -> dict[str, list[str]]:
    """`data_files` of a README by split: a pattern, a list of them, or a list of {split, path}."""
    items = value if isinstance(value, list) else [value]
    found: dict[str, list[str]] = {}
    for item in items:
        split, paths = (item.get("split", "train"), item.get("path")) if isinstance(item, dict) else ("train", item)
        found.setdefault(str(split), []).extend(paths if isinstance(paths, list) else [str(paths)])
    return found


def _matching(globs: list[str], names: list[str]) -> list[str]:
    patterns = [re.compile(glob_translate(glob.removeprefix("./"))) for glob in globs]
    return [name for name in names if any(pattern.match(name) for pattern in patterns)]
