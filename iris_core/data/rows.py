"""Reads files as rows: JSON Lines, JSON, CSV, TSV, Parquet and Arrow, compressed or not, with values as written.

No type is guessed: `007`, `1.50`, `NA` and `2024-01-02` in a CSV file stay that text, and JSON numbers keep their
spelling. An error is one line that names the file and the place.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.common.errors import DataError

Row = dict[str, Any]

LFS_POINTER = b"version https://git-lfs.github.com/spec"
COMPRESSIONS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": partial(pa.input_stream, compression="zstd"),
}


class WrittenFloat(float):
    """A number of a JSON file. Its text is the spelling in the file: `1.50`, `1e3`."""

    written: str

    def __str__(self) -> str:
        return self.written


def suffix(name: str) -> str:
    """The lower-case suffix of a file name, without that of a compression: ".jsonl" for "a.JSONL.gz"."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def readable(name: str) -> bool:
    """Whether a file with this name can be read."""
    compressed = Path(name.lower()).suffix in COMPRESSIONS
    return suffix(name) in (TEXT_READERS if compressed else READERS)


def read_rows(file: Path, columns: Collection[str | None] = ()) -> Iterator[Row]:
    """The rows of `file`, in its order.

    Args:
        file: of a type in `READERS`, by its suffix.
        columns: known column names. A JSON object with one of them is a row; another object may wrap a list of rows.

    Raises:
        DataError: the file is empty, of another type, or damaged.
    """
    if not readable(file.name):
        raise DataError(f"{file}: cannot read {''.join(file.suffixes[-2:])!r} files: give one of {', '.join(READERS)}")
    try:
        _check_content(file)
        yield from READERS[suffix(file.name)](file, columns)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}: fix the file") from error


def _check_content(file: Path) -> None:
    with file.open("rb") as content:
        start = content.read(len(LFS_POINTER))
    if not start:
        raise DataError(f"{file} is empty: give a file with annotated pairs")
    if start == LFS_POINTER:
        raise DataError(f"{file} is a Git LFS pointer, not the data: run `git lfs pull`")


def _open_text(file: Path, newline: str | None = None) -> TextIO:
    opened = COMPRESSIONS.get(file.suffix.lower(), partial(open, mode="rb"))(str(file))
    return io.TextIOWrapper(opened, encoding="utf-8-sig", newline=newline)


def _json_lines(file: Path, columns: Collection[str | None]) -> Iterator[Row]:
    with _open_text(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.lstrip().startswith("[") and number == 1:  # a JSON array in a file named .jsonl
                yield from _rows_in(_parse(line + lines.read()), columns)
            elif line.strip():
                yield _row(_parse(line, f"line {number}: "), f"line {number}")


def _json(file: Path, columns: Collection[str | None]) -> Iterator[Row]:
    with _open_text(file) as content:
        text = content.read()
    try:
        yield from _rows_in(_parse(text), columns)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        yield from _json_lines(file, columns)


def _csv(file: Path, columns: Collection[str | None]) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if suffix(file.name) == ".tsv" else ","
    with _open_text(file, newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = next(reader, [])
        _check_unique(header)
        for fields in reader:
            if fields and len(fields) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(fields)} fields, the header has {len(header)}")
            if fields:
                yield dict(zip(header, fields, strict=True))


def _parquet(file: Path, columns: Collection[str | None]) -> Iterator[Row]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1024):
            yield from _typed_rows(batch)


def _arrow(file: Path, columns: Collection[str | None]) -> Iterator[Row]:
    with pa.memory_map(str(file)) as source:
        try:
            batches: Iterable[pa.RecordBatch] = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(source)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        for batch in batches:
            yield from _typed_rows(batch)


TEXT_READERS: dict[str, Callable[[Path, Collection[str | None]], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
}
READERS = {**TEXT_READERS, ".parquet": _parquet, ".arrow": _arrow}


def _parse(text: str, place: str = "") -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_float=_float, parse_constant=str)
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(place + error.msg if place else error.msg, error.doc, error.pos) from None
    except ValueError as error:
        raise ValueError(f"{place}{error}") from None


def _float(text: str) -> WrittenFloat:
    number = WrittenFloat(text)
    number.written = text
    return number


def _unique(items: list[tuple[str, Any]]) -> Row:
    _check_unique([name for name, _ in items])
    return dict(items)


def _check_unique(names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")


def _rows_in(value: Any, columns: Collection[str | None]) -> list[Row]:
    """The rows of a JSON file: its list, the only list of objects in its object, or the object itself."""
    if isinstance(value, dict) and not value.keys() & set(columns):
        lists = {name: items for name, items in value.items() if _is_table(items)}
        if len(lists) > 1:
            raise ValueError(
                f"it holds several lists of rows, {', '.join(map(repr, lists))}: give a file with one of them"
            )
        value = next(iter(lists.values()), value)
    rows = value if isinstance(value, list) else [value]
    return [_row(row, f"row {number}") for number, row in enumerate(rows)]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {str(value)[:60]!r}, an object with named values is needed")
    return value


def _typed_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    names = batch.schema.names
    _check_unique(names)
    values = [
        [_as_text(value, field.type) for value in column.to_pylist()]
        for field, column in zip(batch.schema, batch.columns, strict=True)
    ]
    for row in zip(*values, strict=True):
        yield dict(zip(names, row, strict=True))


def _as_text(value: Any, kind: pa.DataType) -> Any:
    """Numbers, booleans and dates as text, NaN (pandas' missing value) as None, lists and structs without nulls."""
    if isinstance(value, str | bytes | None):
        return value
    if isinstance(value, list | dict):
        return _without_nulls(value)
    if value != value:
        return None
    return str(np.float32(value) if pa.types.is_float32(kind) else value)


def _without_nulls(value: Any) -> Any:
    """Drops the nulls that columnar files put where a struct lacks a key."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
