"""The annotated pairs: read, check, split. Every complaint names the file, the column or row, and the remedy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.config import DataPart
from iris_core.conversations import Conversation, Unusable, single_turn, text_of
from iris_core.digest import json_digest
from iris_core.errors import DataError, ServiceError
from iris_core.store import Artifact

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("split", pa.string()),
    ]
)

Encode = Callable[[Conversation], tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Pair:
    """One annotated pair, in text for people and in tokens for the model.

    Attributes:
        prompt_id: digest of the conversation before the answer.
        prompt: the last message of the user.
        response: the annotated answer.
        prompt_ids: tokens of the whole conversation in the chat template, up to where the answer starts.
        response_ids: tokens of the answer as the model would see it, the end of turn included.
        split: "train" or "heldout".
    """

    prompt_id: str
    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]
    split: str = "train"


def read_conversations(data: DataPart, path: str) -> list[Conversation]:
    """The annotated answers in the file or hub data set `path`, in its order, with what they answer.

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
    conversations = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        question = _text(prompt, "user", path, row, data.prompt_column)
        answer = _text(response, "assistant", path, row, data.response_column)
        conversations.append(single_turn(question, answer, f"row {row}"))
    return conversations


def make_pairs(
    conversations: Iterable[Conversation],
    data: DataPart,
    path: str,
    encode: Encode,
    taken: Iterable[str] = (),
) -> tuple[list[Pair], Counter[str]]:
    """The conversations that can be used, as pairs with tokens, and how many were dropped for which reason.

    Args:
        conversations: what was read.
        data: limits, and whether a bad pair is an error or dropped.
        path: named in messages.
        encode: the tokens of a prompt and its answer.
        taken: ids of prompts that are in use already (the held-out ones).

    Raises:
        DataError: a bad pair, where `data.on_invalid` is "error"; or no pair is left.
    """
    seen, kept, dropped = set(taken), [], Counter[str]()
    for conversation in conversations:
        try:
            pair = _pair(conversation, data, encode, seen)
        except Unusable as problem:
            if data.on_invalid == "error":
                prompt = last_question(conversation)[:60]
                raise DataError(
                    f"{path}, {conversation.place}: {problem.detail}; prompt {prompt!r}: fix it, or set data.on_invalid: drop"
                ) from None
            dropped[problem.reason] += 1
        else:
            seen.add(pair.prompt_id)
            kept.append(pair)
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
    marked = [replace(pair, split="heldout") for pair in heldout[: data.heldout]]
    return shuffled[: data.max_pairs] + marked


def write_pairs(pairs: list[Pair], path: Path) -> None:
    """Writes `pairs` as Parquet with the columns of `SCHEMA`."""
    pq.write_table(pa.Table.from_pylist([vars(pair) for pair in pairs], SCHEMA), path)


def load_pairs(file: Artifact, split: str | None = None) -> list[Pair]:
    """The pairs in a file of `write_pairs`, all or those of one split.

    Raises:
        DataError: the file is missing, or no longer holds what its digest says.
    """
    if not file.path.is_file() or Artifact.of(file.path).digest != file.digest:
        raise DataError(
            f"{file.path} is missing or has changed since `prepare` wrote it: delete its folder, so that prepare runs again"
        )
    pairs = [Pair(**row) for row in pq.read_table(file.path).to_pylist()]
    return [pair for pair in pairs if split in (None, pair.split)]


def last_question(conversation: Conversation) -> str:
    """The text of the user's last message before the answer; "" where there is none."""
    users = [each for each in conversation.messages if each["role"] == "user"]
    return text_of(users[-1]) if users else ""


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


def _pair(conversation: Conversation, data: DataPart, encode: Encode, seen: set[str]) -> Pair:
    """`conversation` as a pair.

    Raises:
        Unusable: it makes none.
    """
    prompt, response = last_question(conversation), text_of(conversation.answer)
    if not prompt.strip():
        raise Unusable("empty prompt", "the prompt is empty")
    if not (response.strip() or conversation.answer.get("tool_calls")):
        raise Unusable("empty response", "the annotated response is empty")
    prompt_id = json_digest([conversation.messages, conversation.tools])[:16]
    if prompt_id in seen:
        raise Unusable("duplicated prompt", "the prompt stands there twice")
    prompt_ids, response_ids = encode(conversation)
    limits = (
        ("prompt", len(prompt_ids), data.max_prompt_tokens),
        ("response", len(response_ids), data.max_response_tokens),
    )
    for name, tokens, limit in limits:
        if tokens > limit:
            raise Unusable(
                f"long {name}", f"the {name} has {tokens} tokens, data.max_{name}_tokens is {limit}"
            )
    return Pair(prompt_id, prompt, response, prompt_ids, response_ids)
