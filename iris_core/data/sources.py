"""Finds and reads the sources of annotated rows, and digests their content.

A source is a file, a folder, a glob of files, a folder of `save_to_disk`, or a data set on the Hugging Face hub. Its
digest is made of the bytes of every local file, or of the commit of a hub data set, never of a name.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iris_core.common.digest import file_digest, json_digest
from iris_core.common.errors import ConfigError, DataError
from iris_core.common.redaction import redact
from iris_core.config import DataPart, Source
from iris_core.data import hub, hub_files, splits
from iris_core.data.conversations import Conversation, SourceRecord, Unusable
from iris_core.data.formats import COLUMNS, conversations_in, format_of, prompts_in, selected, with_reference
from iris_core.data.rows import READERS, read_rows, readable, suffix

SHARED = ("name", "split", "revision", "format", "prompt_column", "response_column")
GLOB = re.compile(r"[*?\[]")
SourcePath = str | list[Source]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The files of a source.

    Attributes:
        files: their paths, in reading order.
        names: their names in messages; "" for a file that is the source itself.
        warnings: about files that were not read or may be missing.
    """

    files: list[Path]
    names: list[str]
    warnings: list[str] = field(default_factory=list)


@dataclass
class Reading:
    """The rows that were read, with counts and warnings.

    Attributes:
        rows: the conversations of each row, one for each annotated turn.
        sources: one record for each source.
        dropped: how many rows could not be understood, by reason.
        warnings: one line each.
    """

    rows: list[list[Conversation]] = field(default_factory=list)
    sources: list[SourceRecord] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def read_conversations(
    data: DataPart, path: SourcePath, seed: int, setting: str = "data.path", annotated: bool = True
) -> Reading:
    """Reads the conversations in `path`, in its order.

    Args:
        data: the settings for reading.
        path: `data.path`, `data.heldout_path` or `data.prompts_path`.
        seed: of the sampling of rows if sources have weights.
        setting: the name of that setting, for messages.
        annotated: whether they have annotated answers; those of others are ignored.

    Raises:
        DataError: a source is not readable or of no known format, or a row cannot be understood and `data.on_invalid`
            is "error".
        ConfigError: settings contradict each other, a weight leaves no row, or a cache cannot be written.
        ServiceError: the hub cannot be reached.
    """
    reading, sources = Reading(), sources_of(data, path)
    found = [_read(source, data, setting, len(sources) > 1, reading, annotated) for source in sources]
    counts = _shares([record.used for _, record in found], [source.weight for source in sources])
    for (rows, whole), count in zip(found, counts, strict=True):
        if rows and not count:
            raise ConfigError(
                f"{setting}: with the weight of {whole.path} none of its {len(rows)} rows would be drawn: raise it, "
                "or leave it out"
            )
        kept = sorted(random.Random(seed).sample(range(len(rows)), count))
        reading.rows.extend(rows[number] for number in kept)
        record = whole.model_copy(update={"used": count})
        reading.sources.append(record)
        log.info("read %s", ", ".join(f"{name} {value}" for name, value in record if value is not None))
    for warning in reading.warnings:
        log.warning(warning)
    return reading


def sources_of(data: DataPart, path: SourcePath) -> list[Source]:
    """The sources in `path`. Settings that a source leaves out are taken from `data`.

    Raises:
        ConfigError: columns for a format that has its own, or weights for some of the sources only.
    """
    given = [Source(path=path)] if isinstance(path, str) else path
    shared = {name: getattr(data, name) for name in SHARED}
    sources = [Source(**{**shared, **each.model_dump(exclude_none=True)}) for each in given]
    for source in sources:
        own_columns = source.format not in ("auto", "pairs")
        if own_columns and (source.prompt_column or source.response_column):
            raise ConfigError(
                f"data.format: {source.format} has columns of its own: leave out data.prompt_column and "
                "data.response_column, or data.format"
            )
    if len({source.weight is None for source in sources}) > 1:
        raise ConfigError("data.path: give a weight to all sources, or to none")
    return sources


def pin(data: DataPart) -> DataPart:
    """`data` with the commit of every data set on the hub, so that all later steps read the same content.

    Raises:
        DataError: there is no such source.
        ConfigError: a revision is set, and nothing is on the hub.
        ServiceError: the hub cannot be reached, and the data set is not in the cache.
    """
    pinned: dict[str, Any] = {"path": _pinned("data.path", data, data.path)}
    for name in ("heldout_path", "prompts_path"):
        if (path := getattr(data, name)) is not None:
            pinned[name] = _pinned(f"data.{name}", data, path)
    if all(path == getattr(data, name) for name, path in pinned.items()):  # nothing on the hub
        if data.revision is not None:
            raise ConfigError(
                f"data.revision: {data.revision} is for data sets on the hub, {label('data.path', data.path)} is here: "
                "leave it out"
            )
        return data
    return data.model_copy(update={**pinned, "revision": None})


def source_digest(setting: str, data: DataPart, path: SourcePath | None) -> str | None:
    """SHA-256 of the content of `path`: the bytes of local files in their order, the commit of a hub data set.

    Raises:
        DataError: there is no such source, or no such split in it.
    """
    if path is None:
        return None
    return json_digest([_digest(setting, source) for source in sources_of(data, path)])


def label(setting: str, path: SourcePath) -> str:
    """The name of the source in messages: its path, or the setting if it lists several."""
    if isinstance(path, str):
        return path
    return path[0].path if len(path) == 1 else setting


def _digest(setting: str, source: Source) -> Any:
    found = _find_here(setting, source)
    if found is None:
        return [source.path, hub_files.commit_of(source.path, source.revision)]
    return [[suffix(file.name), file_digest(file)] for file in found.files]


def _pinned(setting: str, data: DataPart, path: SourcePath) -> SourcePath:
    sources = sources_of(data, path)
    on_hub = [_find_here(setting, source) is None for source in sources]
    if not any(on_hub):
        return path
    commits = [
        hub_files.commit_of(source.path, source.revision) if remote else None
        for source, remote in zip(sources, on_hub, strict=True)
    ]
    return [source.model_copy(update={"revision": commit}) for source, commit in zip(sources, commits, strict=True)]


def _read(
    source: Source, data: DataPart, setting: str, several: bool, reading: Reading, annotated: bool
) -> tuple[list[list[Conversation]], SourceRecord]:
    """The conversations of one source by row, and its record. Dropped rows and warnings are added to `reading`."""
    found = _find(setting, source)
    where = source.path
    known = COLUMNS | {source.prompt_column, source.response_column, data.reference_column}
    rows = [
        (f"{name}, row {number}" if name else f"row {number}", row)
        for file, name in zip(found.files, found.names, strict=True)
        for number, row in enumerate(read_rows(file, known))
    ]
    if not rows:
        raise DataError(f"{where} is empty: give a file with annotated pairs")
    columns = list(dict.fromkeys(name for _, row in rows for name, value in row.items() if value is not None))
    form = format_of(source, columns, where, annotated)
    if annotated and data.reference_column not in (None, *columns):
        raise DataError(
            f"{where} has no column {data.reference_column!r}; it has {', '.join(map(repr, columns))}: correct "
            "data.reference_column, or leave it out"
        )
    parse, conversations = conversations_in if annotated else prompts_in, []
    for place, row in rows:
        try:
            full = f"{where}, {place}" if several else place
            turns = with_reference(parse(row, form, full), row, data.reference_column)
            conversations.append(selected(turns, data.turns))
        except Unusable as error:
            if data.on_invalid == "error":
                raise DataError(f"{where}, {place}: {error.detail}: fix it, or set data.on_invalid: drop") from None
            reading.dropped[error.reason] += 1
    reading.warnings.extend(found.warnings)
    if unread := form.unread(columns):
        reading.warnings.append(f"{where}: {unread}")
    record = SourceRecord(
        path=where, revision=source.revision, format=form.name, rows=len(rows), used=len(conversations)
    )
    return conversations, record


def _shares(counts: list[int], weights: list[float | None]) -> list[int]:
    """How many rows to take of each source: all, or as many as possible in the proportion of the weights."""
    shares = [weight for weight in weights if weight is not None]
    if not shares:
        return counts
    scale = min(count / share for count, share in zip(counts, shares, strict=True))
    return [min(count, round(scale * share)) for count, share in zip(counts, shares, strict=True)]


def _find(setting: str, source: Source) -> Found:
    """The files of a source, which are downloaded if it is on the hub."""
    found = _find_here(setting, source)
    if found is not None:
        return found
    commit = hub_files.commit_of(source.path, source.revision)
    listed, readme, complete = hub_files.list_files(source.path, commit)
    names, warnings = _chosen(listed, readme, source)
    if not complete:
        warnings.append(
            f"{source.path}: taken from the cache without a list of its files: run once with a network to be sure that "
            "all are there"
        )
    return Found(hub_files.fetch(source.path, commit, names), names, warnings)


def _find_here(setting: str, source: Source) -> Found | None:
    """The files of a source on this machine; None if it is on the hub.

    An existing file or folder takes precedence over a data set of the same name on the hub.
    """
    path = _expanded(source.path)
    if path.is_file():
        return Found([path], [""])
    if path.is_dir():
        return _in_folder(path, source)
    if GLOB.search(source.path):
        return _matching(setting, path)
    if "://" in source.path:
        raise DataError(
            f"{setting}: {redact(source.path)} is an address: download the file and give its path, or give the name on "
            "the hub (owner/name)"
        )
    local = path.is_absolute() or source.path.startswith((".", "~")) or readable(source.path)
    if local or not hub.is_name(source.path):
        raise DataError(
            f"{setting}: there is no file or folder {path}: give a file ({', '.join(READERS)}), a folder, or a name on "
            "the hub"
        )
    return None


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~somebody" without such a user is an ordinary name
        return Path(path)


def _in_folder(folder: Path, source: Source) -> Found:
    saved = folder / "state.json"  # of datasets' save_to_disk, as is dataset_dict.json
    if (folder / "dataset_dict.json").is_file():
        known = _value(folder / "dataset_dict.json", "splits")
        splits.check_split(source.split, known, source.path)
        saved = folder / str(source.split) / "state.json"
    if saved.is_file():
        if saved.parent == folder:
            own = _value(saved, "_split") or "train"
            splits.check_split(source.split, [own, "train"], source.path)
        shards = [file["filename"] for file in _value(saved, "_data_files")]
        return Found([saved.parent / name for name in shards], shards)
    listed = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    readme = folder / "README.md"
    names, warnings = _chosen(listed, readme if readme.is_file() else None, source)
    return Found([folder / name for name in names], names, warnings)


def _value(file: Path, name: str) -> Any:
    """A value of a JSON file that save_to_disk writes beside the data."""
    try:
        return json.loads(file.read_text())[name]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: save the data set again with save_to_disk") from error


def _chosen(names: list[str], readme: Path | None, source: Source) -> tuple[list[str], list[str]]:
    """The files of a data set in the subset and split of `source`, and warnings."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme else None
    layout = splits.layout(names, text)
    chosen = splits.choose(layout, source.name, source.split or "train", source.path)
    if not layout.unread:
        return chosen, []
    unread = ", ".join(layout.unread)
    return chosen, [f"{source.path}: not read, because their names say no split: {unread}"]


def _matching(setting: str, path: Path) -> Found:
    """The data files that a glob matches. A part of the glob that exists under that very name is not a pattern."""
    base, parts = Path(), list(path.parts)
    while parts and (not GLOB.search(parts[0]) or (base / parts[0]).exists()):
        base /= parts.pop(0)
    matches = [file for file in base.glob("/".join(parts)) if file.is_file()] if parts else []
    names = splits.data_names([file.relative_to(base).as_posix() for file in matches])
    if not names:
        raise DataError(f"{setting}: {path} matches no file of a type that can be read ({', '.join(READERS)})")
    return Found([base / name for name in names], names)
