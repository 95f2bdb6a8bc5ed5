"""Checks, splits and stores the annotated pairs. Every error names the file, the row and the remedy."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.common.digest import json_digest
from iris_core.common.errors import DataError
from iris_core.common.parquet import write_parquet
from iris_core.config import DataPart
from iris_core.data.conversations import Conversation, Unusable, text_of
from iris_core.store import Artifact

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("split", pa.string()),
        ("reference", pa.string()),
    ]
)

KNOWN = "known prompt"  # a reason to leave out a prompt without annotation that is no fault of the data

Encode = Callable[[Conversation], tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Pair:
    """One annotated pair, or a prompt without annotation, as text for people and as tokens for the model.

    Attributes:
        prompt_id: digest of the conversation before the answer.
        prompt: the last message of the user.
        response: the annotated answer; "" where there is none.
        prompt_ids: tokens of the whole conversation in the chat template, up to where the answer starts.
        response_ids: tokens of the answer in the chat template, with the end of turn.
        split: "train" or "heldout".
        reference: what the verifier compares responses with; None: the annotated answer, or nothing without one.
    """

    prompt_id: str
    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]
    split: str = "train"
    reference: str | None = None

    @property
    def annotated(self) -> bool:
        """Whether it has an annotated answer."""
        return bool(self.response_ids)


@dataclass(frozen=True)
class Usable:
    """A pair that passed every check.

    Attributes:
        pair: the pair.
        near: `near_digest` of the conversation.
        row: number of its row in the source; all turns of a conversation have the same.
    """

    pair: Pair
    near: str
    row: int


def make_pairs(
    rows: Iterable[Iterable[Conversation]],
    data: DataPart,
    where: str,
    encode: Encode,
    dropped: Counter[str],
    heldout: Collection[str] = (),
) -> list[Usable]:
    """Makes pairs with tokens of the conversations that can be used.

    Args:
        rows: the conversations of each row.
        data: the limits, and whether a bad pair is an error or dropped.
        where: the source, for messages.
        encode: gives the tokens of a prompt and of its answer.
        dropped: how many pairs were dropped, by reason; this function adds to it.
        heldout: `near` of held-out prompts: a row with one of them is not used for training.

    Raises:
        DataError: a bad pair, where `data.on_invalid` is "error"; or no pair is left.
    """
    seen: set[str] = set()
    kept: list[Usable] = []
    for number, row in enumerate(rows):
        conversations = list(row)
        nears = [near_digest(each) for each in conversations]
        apart = not set(nears) & set(heldout)
        for conversation, near in zip(conversations, nears, strict=True):
            try:
                if not apart:
                    raise Unusable("held-out prompt", "the prompt is in the held-out data, too")
                pair = _pair(conversation, data, encode, seen)
            except Unusable as problem:
                if data.on_invalid == "error":
                    raise DataError(_complaint(conversation, where, problem)) from None
                dropped[problem.reason] += 1
            else:
                seen.add(pair.prompt_id)  # kept pairs only: a bad pair must not hide a good one
                kept.append(Usable(pair, near, number))
    if not kept:
        raise DataError(f"{where} has no usable pair: {dict(dropped) or 'it is empty'}")
    return kept


def unseen(
    rows: Iterable[Iterable[Conversation]], known: Mapping[str, str], dropped: Counter[str]
) -> Iterator[list[Conversation]]:
    """The prompts of each row that are not known, and not in a row before, even in nearly the same words.

    Of a row with a held-out prompt none is taken: its other turns have that prompt before them, or its answer.

    Args:
        rows: the conversations of each row.
        known: the splits of prompts that are annotated or held out, by their `near`.
        dropped: how many were dropped, by reason; this function adds to it.
    """
    seen = set(known)
    for row in rows:
        nears = {near_digest(each): each for each in row}
        apart = all(known.get(near) != "heldout" for near in nears)
        fresh = [each for near, each in nears.items() if near not in seen] if apart else []
        if known_here := len(nears) - len(fresh):
            dropped[KNOWN] += known_here
        seen |= nears.keys()
        yield fresh


def near_digest(conversation: Conversation) -> str:
    """Digest of the conversation before the answer that ignores case, white space and Unicode form."""
    messages = [{**message, "content": _plain(text_of(message))} for message in conversation.messages]
    return json_digest([messages, conversation.tools])


def split_pairs(usable: list[Usable], heldout: list[Pair] | None, data: DataPart, seed: int, where: str) -> list[Pair]:
    """Shuffles by `seed`, marks the held-out pairs and cuts to `data.max_pairs`.

    Of more pairs in `heldout` than `data.heldout` those are taken that have the first digests: they are the same for
    every seed, and no matter of their order in the file, which may be by subject.

    All turns of a conversation are in the same split, and so are near-duplicate prompts. With conversations of several
    turns, a few more pairs than `data.heldout` may be held out for that.

    Raises:
        DataError: fewer pairs than are to be held out, or fewer than two in `heldout`.
    """
    groups = _together(usable)
    random.Random(seed).shuffle(groups)
    if heldout is None:
        heldout, groups = _hold_out(groups, data.heldout)
        if not groups:
            raise DataError(
                f"{where} has {len(usable)} usable pairs, data.heldout takes {data.heldout} of them: lower data.heldout"
            )
    elif len(heldout) < 2:  # no interval from one
        raise DataError("data.heldout_path has 1 usable pair, two are needed: add some")
    else:
        heldout = _chosen(heldout, data.heldout)
    train = [pair for group in groups for pair in group]
    return train[: data.max_pairs] + [replace(pair, split="heldout") for pair in heldout]


def _chosen(pairs: list[Pair], count: int) -> list[Pair]:
    """At most `count` pairs in their order, chosen by their digests."""
    chosen = set(sorted(pair.prompt_id for pair in pairs)[:count])
    return [pair for pair in pairs if pair.prompt_id in chosen]


def _together(usable: list[Usable]) -> list[list[Pair]]:
    """Groups of pairs that are connected by shared rows or near-duplicate prompts, in the order of their first pair."""
    parents: dict[int | str, int | str] = {}

    def root(name: int | str) -> int | str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents[parent]
        return name

    for each in usable:
        parents[root(each.near)] = root(each.row)
    groups: dict[int | str, list[Pair]] = {}
    for each in usable:
        groups.setdefault(root(each.row), []).append(each.pair)
    return list(groups.values())


def _hold_out(groups: list[list[Pair]], count: int) -> tuple[list[Pair], list[list[Pair]]]:
    """The first groups with `count` pairs in total, and the others. If too few, they get the smallest other."""
    heldout: list[Pair] = []
    others = []
    for group in groups:
        if len(heldout) + len(group) <= count:
            heldout.extend(group)
        else:
            others.append(group)
    if len(heldout) < count and others:
        heldout.extend(others.pop(others.index(min(others, key=len))))
    return heldout, others


def write_pairs(pairs: list[Pair], path: Path) -> None:
    """Writes `pairs` as Parquet with the columns of `SCHEMA`."""
    write_parquet(path, pa.Table.from_pylist([vars(pair) for pair in pairs], SCHEMA))


def load_pairs(file: Artifact, split: str | None = None) -> list[Pair]:
    """Reads the pairs that `write_pairs` wrote, all or those of one split.

    Raises:
        DataError: the file is missing, or no longer holds what its digest says.
    """
    if not file.holds():
        raise DataError(
            f"{file.path} is missing or has changed since `prepare` wrote it: run the loop again to write it again"
        )
    pairs = [Pair(**row) for row in pq.read_table(file.path).to_pylist()]
    return [pair for pair in pairs if split in (None, pair.split)]


def last_question(conversation: Conversation) -> str:
    """The text of the user's last message before the answer; "" if there is none."""
    users = [each for each in conversation.messages if each["role"] == "user"]
    return text_of(users[-1]) if users else ""


def _plain(text: str) -> str:
    """`text` without differences in case, white space and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _complaint(conversation: Conversation, where: str, problem: Unusable) -> str:
    prompt = last_question(conversation)[:60]
    return f"{where}, {conversation.place}: {problem.detail}; prompt {prompt!r}: fix it, or set data.on_invalid: drop"


def _pair(conversation: Conversation, data: DataPart, encode: Encode, seen: set[str]) -> Pair:
    """`conversation` as a pair.

    Raises:
        Unusable: it cannot become one.
    """
    annotated, prompt = conversation.annotated, last_question(conversation)
    response = text_of(conversation.answer) if annotated else ""
    if not prompt.strip():
        raise Unusable("empty prompt", "the prompt is empty")
    if annotated and not response.strip() and not conversation.answer.get("tool_calls"):
        raise Unusable("empty response", "the annotated response is empty")
    prompt_id = json_digest([conversation.messages, conversation.tools])[:16]
    if prompt_id in seen:
        raise Unusable("duplicated prompt", "the prompt is there twice")
    prompt_ids, answer_ids = encode(conversation)
    response_ids = answer_ids if annotated else []
    limits = (
        ("prompt", len(prompt_ids), data.max_prompt_tokens),
        ("response", len(response_ids), data.max_response_tokens),
    )
    for name, tokens, limit in limits:
        if tokens > limit:
            raise Unusable(f"long {name}", f"the {name} has {tokens} tokens, data.max_{name}_tokens is {limit}")
    return Pair(prompt_id, prompt, response, prompt_ids, response_ids, reference=conversation.reference)
