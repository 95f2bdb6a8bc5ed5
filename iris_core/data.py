"""The annotated pairs: read, check, split. Every complaint names the file, the column or row, and the remedy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.config import DataPart
from iris_core.digest import text_digest
from iris_core.errors import DataError, ServiceError

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
SCHEMA = pa.schema([(name, pa.string()) for name in ("prompt_id", "prompt", "response", "split")])


@dataclass(frozen=True)
class Pair:
    """One annotated pair. `prompt_id` is a digest of the prompt."""

    prompt_id: str
    prompt: str
    response: str
    split: str = "train"


def read_pairs(data: DataPart, path: str) -> list[Pair]:
    """The pairs in the file or hub data set `path`, in its order.

    Raises:
        DataError: not readable, columns missing, or a value that is no text.
    """
    rows = _load(data, path)
    for column in (data.prompt_column, data.response_column):
        if column not in rows.column_names:
            raise DataError(
                f"{path} has no column {column!r}; it has {', '.join(map(repr, rows.column_names))}: "
                "set data.prompt_column and data.response_column"
            )
    try:
        prompts, responses = list(rows[data.prompt_column]), list(rows[data.response_column])
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from error
    pairs = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        text = _text(prompt, "user", path, row, data.prompt_column)
        pairs.append(
            Pair(
                text_digest(text)[:16],
                text,
                _text(response, "assistant", path, row, data.response_column),
            )
        )
    return pairs


def check_pairs(
    pairs: list[Pair],
    data: DataPart,
    path: str,
    lengths: Callable[[Pair], tuple[int, int]],
    taken: Iterable[str] = (),
) -> tuple[list[Pair], Counter[str]]:
    """The pairs that can be used, and how many were dropped for which reason.

    Args:
        pairs: what was read.
        data: limits, and whether a bad pair is an error or dropped.
        path: named in messages.
        lengths: tokens of a pair's prompt (with template) and response (with end of turn).
        taken: ids of prompts that are in use already (the held-out ones).

    Raises:
        DataError: a bad pair, where `data.on_invalid` is "error"; or no pair is left.
    """
    seen, kept, dropped = set(taken), [], Counter[str]()
    for row, pair in enumerate(pairs):
        problem = _problem(pair, data, lengths, seen)
        seen.add(pair.prompt_id)
        if problem is None:
            kept.append(pair)
            continue
        reason, detail = problem
        if data.on_invalid == "error":
            raise DataError(
                f"{path}, row {row}: {detail}; prompt {pair.prompt[:60]!r}: mend it, or set data.on_invalid: drop"
            )
        dropped[reason] += 1
    if not kept:
        raise DataError(f"{path} has no usable pair: {dict(dropped) or 'it is empty'}")
    return kept, dropped


def split_pairs(
    pairs: list[Pair], heldout: list[Pair] | None, data: DataPart, seed: int
) -> list[Pair]:
    """Shuffles by `seed`, marks the held-out pairs and cuts to `data.max_pairs`.

    Raises:
        DataError: fewer pairs than are to be held out.
    """
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)
    if heldout is None:
        if len(shuffled) <= data.heldout:
            raise DataError(
                f"{data.path} has {len(shuffled)} usable pairs, data.heldout takes {data.heldout} of them: lower data.heldout"
            )
        heldout, shuffled = shuffled[: data.heldout], shuffled[data.heldout :]
    marked = [
        Pair(pair.prompt_id, pair.prompt, pair.response, "heldout")
        for pair in heldout[: data.heldout]
    ]
    return shuffled[: data.max_pairs] + marked


def write_pairs(pairs: list[Pair], path: Path) -> None:
    """Writes `pairs` as Parquet with the columns of `SCHEMA`."""
    pq.write_table(pa.Table.from_pylist([vars(pair) for pair in pairs], SCHEMA), path)


def load_pairs(path: Path, split: str | None = None) -> list[Pair]:
    """The pairs in a file of `write_pairs`, all or those of one split."""
    pairs = [Pair(**row) for row in pq.read_table(path).to_pylist()]
    return [pair for pair in pairs if split in (None, pair.split)]


def _load(data: DataPart, path: str) -> Any:
    import datasets

    file = Path(path).expanduser()
    try:
        if file.is_file():
            reader = READERS.get(file.suffix)
            if reader is None:
                raise DataError(
                    f"{path}: cannot read {file.suffix!r} files: give one of {', '.join(READERS)}"
                )
            if not file.stat().st_size:
                raise DataError(f"{path} is empty: give a file with annotated pairs")
            return datasets.Dataset.from_parquet(str(file)) if reader == "parquet" else datasets.load_dataset(
                reader, data_files=str(file), split="train"
            )  # fmt: skip
        return datasets.load_dataset(path, split=data.split)
    except ConnectionError as error:
        raise ServiceError(
            f"data: {path!r} is not a file, and the Hugging Face hub cannot be reached: give a JSON Lines, Parquet or CSV "
            "file, or run again with a network"
        ) from error
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds; its message names the line or column
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataError:
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeDecodeError):
        return DataError(f"{path} is not UTF-8 text ({cause.reason}): save it as UTF-8")
    return DataError(f"{path} cannot be read: {cause}: mend the file")


def _text(value: Any, role: str, path: str, row: int, column: str) -> str:
    """`value` if it is text, or the first message of `role` if it is a conversation; "" where there is none."""
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        value = next(
            (message.get("content") for message in value if message.get("role") == role), None
        )
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{path}, row {row}: column {column!r} holds {value!r} ({type(value).__name__}), text is needed: "
            "write answers as strings"
        )
    return value


def _problem(
    pair: Pair, data: DataPart, lengths: Callable[[Pair], tuple[int, int]], seen: set[str]
) -> tuple[str, str] | None:
    if not pair.prompt.strip():
        return "empty prompt", "the prompt is empty"
    if not pair.response.strip():
        return "empty response", "the annotated response is empty"
    if pair.prompt_id in seen:
        return "duplicated prompt", "the prompt stands there twice"
    prompt, response = lengths(pair)
    if prompt > data.max_prompt_tokens:
        return (
            "long prompt",
            f"the prompt has {prompt} tokens, data.max_prompt_tokens is {data.max_prompt_tokens}",
        )
    if response > data.max_response_tokens:
        return (
            "long response",
            f"the response has {response} tokens, data.max_response_tokens is {data.max_response_tokens}",
        )
    return None
