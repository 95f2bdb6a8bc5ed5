"""Converts rows to conversations: the common formats of annotated data.

`data.format` names one. With `auto` the columns decide; if they fit several formats, the user must choose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from iris_core.common.errors import DataError
from iris_core.config import Source, Turns
from iris_core.data.conversations import Conversation, Message, Unusable, text_of
from iris_core.data.messages import (
    as_text,
    check_order,
    conversation_in,
    json_in,
    messages_of,
    short,
    transcript_in,
)
from iris_core.data.rows import Row

Parts = tuple[list[Message], list[Message]]  # the turns before the annotated ones, and the annotated ones

SYSTEM = ("system", "system_prompt")
CONTEXT = {  # columns that an answer may depend on
    "input",
    "context",
    "history",
    "functions",
    "passage",
    "document",
    "article",
    "choices",
    "options",
}
PLACEHOLDER = "answer"  # where nobody has annotated one: templates render whole turns
MEDIA = ("images", "image", "videos", "video", "audios", "audio")


@dataclass(frozen=True)
class Format:
    """A format of rows, and how it is read.

    Attributes:
        name: its name in `data.format`.
        needs: required columns, each with its possible names.
        parts: gives the messages of a row.
        optional: columns that are read if they exist. `system` and `tools` are read in every format.
        answer: the column that holds the annotated answer alone; None: the answer is part of a conversation.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    parts: Callable[[Row], Parts]
    optional: tuple[str, ...] = ()
    answer: str | None = None

    def without_answer(self) -> Format:
        """The format of rows that need no annotated answer."""
        return replace(self, needs=tuple(names for names in self.needs if self.answer not in names))

    def fits(self, columns: Collection[str]) -> bool:
        """Whether rows with these columns can be read."""
        return all(any(name in columns for name in names) for names in self.needs)

    def unread(self, columns: Collection[str]) -> str:
        """A warning if an answer may depend on some of `columns` that this format does not read; otherwise ""."""
        left_out = self.leaves_out(columns)
        if not left_out:
            return ""
        names = ", ".join(map(repr, left_out))
        better = [each.name for each in FORMATS.values() if each.fits(columns) and not each.leaves_out(columns)]
        remedy = (
            f"leave out prompt_column and response_column, and set data.format: {better[0]}"
            if better
            else "join it to the prompt"
        )
        return f"read as {self.name}, without what is in column {names}: {remedy}"

    def leaves_out(self, columns: Collection[str]) -> list[str]:
        """Those of `columns` that an answer may depend on and that this format does not read."""
        read = {*self.optional, *(name for names in self.needs for name in names)}
        return sorted((CONTEXT & set(columns)) - read)


def format_of(source: Source, columns: Collection[str], where: str, annotated: bool = True) -> Format:
    """The format of rows with these columns.

    Args:
        source: the user's settings.
        columns: names of columns with a value in any row.
        where: the source, for messages.
        annotated: whether rows need an annotated answer.

    Raises:
        DataError: the columns fit no format, several formats, or not the one that is set.
    """
    if source.prompt_column or source.response_column:
        form = _pairs(source.prompt_column, source.response_column)
        return _fitting(form if annotated else form.without_answer(), columns, where)
    if source.format not in (None, "auto"):
        form = FORMATS[source.format]
        return _fitting(form if annotated else form.without_answer(), columns, where)
    fitting = [each for each in FORMATS.values() if each.fits(columns)]
    if not fitting and not annotated:
        fitting = [each for each in PROMPT_FORMATS if each.fits(columns)]
    if len(fitting) > 1:
        names = ", ".join(each.name for each in fitting)
        raise DataError(f"{where}: its columns fit the formats {names}: set data.format to one of them")
    if not fitting:
        raise DataError(
            f"{where} has no columns of a known format; it has {_listed(columns)}: set data.prompt_column and "
            "data.response_column"
        )
    return fitting[0]


def conversations_in(row: Row, form: Format, place: str) -> list[Conversation]:
    """A conversation for each annotated turn of the assistant.

    Raises:
        Unusable: the row cannot be understood.
    """
    if filled := [name for name in MEDIA if row.get(name)]:
        raise Unusable("not text", f"column {filled[0]!r} is filled, only text can be trained on")
    before, annotated = form.parts(row)
    messages = _with_system([*before, *annotated], row)
    check_order(messages)
    first = len(messages) - len(annotated)
    answers = [number for number in range(first, len(messages)) if _is_answer(messages[number])]
    if not answers:
        raise Unusable("empty response", "there is no annotated turn of the assistant")
    messages = [_without_weight(message) for message in messages]
    found = [Conversation(messages[:end], messages[end], place, _tools(row)) for end in answers]
    if len(found) > 1:
        found = [replace(each, place=f"{place}, turn {n}") for n, each in enumerate(found, 1)]
    return found


def selected(found: list[Conversation], turns: Turns) -> list[Conversation]:
    """The conversations of a row that `turns` selects."""
    return {"first": found[:1], "last": found[-1:], "all": found}[turns]


def prompts_in(row: Row, form: Format, place: str) -> list[Conversation]:
    """The same without annotated answers: those of the row are ignored, or missing as after a last turn of the user.

    Raises:
        Unusable: the row cannot be understood.
    """
    if form.answer:
        row = {**row, form.answer: PLACEHOLDER}
    asked = replace(form, parts=lambda row: _answered(*form.parts(row)))
    found = conversations_in(row, asked, place)
    placeholder = {"role": "assistant", "content": PLACEHOLDER}
    return [replace(each, answer=placeholder, annotated=False) for each in found]


def with_reference(found: list[Conversation], row: Row, column: str | None) -> list[Conversation]:
    """`found` with the reference in `column` of their row, which is that of the last of them.

    Raises:
        Unusable: an annotated row has none.
    """
    if column is None or not found:
        return found
    value = row.get(column)
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else as_text(value, column)
    if text.strip():
        return [*found[:-1], replace(found[-1], reference=text)]
    if found[-1].annotated:
        raise Unusable("empty reference", f"column {column!r} is empty, a reference for the verifier is needed")
    return found


def _answered(before: list[Message], annotated: list[Message]) -> Parts:
    """A conversation that ends with a question gets a placeholder for its answer."""
    if annotated and annotated[-1]["role"] != "assistant":
        return before, [*annotated, {"role": "assistant", "content": PLACEHOLDER}]
    return before, annotated


def _fitting(form: Format, columns: Collection[str], where: str) -> Format:
    for names in form.needs:
        if not any(name in columns for name in names):
            raise DataError(
                f"{where} has no column {' or '.join(map(repr, names))}; it has {_listed(columns)}: set "
                "data.prompt_column and data.response_column, or data.format"
            )
    return form


def _listed(columns: Collection[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"


def _pairs(prompt: str | None, response: str | None) -> Format:
    """The format with two columns of text or messages. One column with whole conversations may be both."""
    prompt, response = prompt or "prompt", response or "response"

    def parts(row: Row) -> Parts:
        if prompt == response:
            return [], conversation_in(row.get(prompt), prompt)
        before = _asked(row.get(prompt), prompt)
        return _joined(before, messages_of(row.get(response), "assistant", response), prompt, response)

    name, answer = ("messages", None) if prompt == response else ("pairs", response)
    return Format(name, ((prompt,), (response,)), parts, answer=answer)


def _joined(before: list[Message], answers: list[Message], prompt: str, response: str) -> Parts:
    """`answers` after `before`. If `answers` are a whole conversation, it must begin with `before`."""
    if not answers or answers[0]["role"] not in ("system", "user"):
        return before, answers
    asked = [(message["role"], message["content"].strip()) for message in before]
    if asked in ([], [("user", "")]):
        return [], answers
    start = int(answers[0]["role"] == "system" and asked[0][0] != "system")
    end = start + len(asked)
    if asked != [(message["role"], message["content"].strip()) for message in answers[start:end]]:
        raise Unusable(
            "two prompts",
            f"the conversation in column {response!r} does not begin with the prompt in column {prompt!r}",
        )
    return answers[:end], answers[end:]


def _alpaca(row: Row) -> Parts:
    """Instruction, blank line and input as the question, after the turns of `history`, a list of [question, answer]."""
    said = [as_text(row.get("instruction"), "instruction"), as_text(_first(row, "input", "context"), "input")]
    question = "\n\n".join(part for part in said if part.strip())
    answer = as_text(_first(row, "output", "response"), "output")
    asked = {"role": "user", "content": question}
    return _history(row.get("history")), [asked, {"role": "assistant", "content": answer}]


def _history(value: Any) -> list[Message]:
    turns = json_in(value) or []
    if not isinstance(turns, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns):
        raise Unusable(
            "history",
            f"column 'history' holds {short(value)}, a list of [question, answer] is needed",
        )
    return [
        {"role": role, "content": as_text(text, "history")}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _sharegpt(row: Row) -> Parts:
    return [], conversation_in(row.get("conversations"), "conversations")


def _messages(row: Row) -> Parts:
    return [], conversation_in(_first(row, "messages", "conversation"), "messages")


def _preference(row: Row) -> Parts:
    """The last turn of `chosen`, after its own earlier turns or those of `prompt`, which nobody has annotated."""
    chosen = transcript_in(row.get("chosen"))
    chosen = messages_of(row.get("chosen"), "assistant", "chosen") if chosen is None else chosen
    if chosen and chosen[0]["role"] in ("system", "user"):
        return chosen[:-1], chosen[-1:]
    if row.get("prompt") is None:
        raise Unusable("empty prompt", "column 'chosen' holds an answer alone, and there is no column 'prompt'")
    return [*_asked(row["prompt"], "prompt"), *chosen[:-1]], chosen[-1:]


def _asked(value: Any, column: str) -> list[Message]:
    """The messages of a prompt, which may be a transcript that ends with an empty turn of the assistant."""
    asked = transcript_in(value)
    asked = messages_of(value, "user", column) if asked is None else asked
    begun = asked and asked[-1]["role"] == "assistant" and not text_of(asked[-1])
    return asked[:-1] if begun else asked


FORMATS = {
    each.name: each
    for each in (
        _pairs(None, None),
        Format(
            "alpaca",
            (("instruction",), ("output", "response")),
            _alpaca,
            ("input", "context", "history"),
            answer="output",
        ),
        Format("sharegpt", (("conversations",),), _sharegpt),
        Format("messages", (("messages", "conversation"),), _messages),
        replace(_pairs("prompt", "completion"), name="prompt_completion"),
        Format("preference", (("chosen",),), _preference, ("prompt",)),
    )
}

# of prompts alone; without their answers, `pairs` and `prompt_completion` are the same
PROMPT_FORMATS = [each.without_answer() for name, each in FORMATS.items() if name != "prompt_completion"]

COLUMNS: frozenset[str | None] = frozenset(
    name for each in FORMATS.values() for names in (*each.needs, each.optional) for name in names
)


def _first(row: Row, *names: str) -> Any:
    """The value of the first of `names` that has one."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _is_answer(message: Message) -> bool:
    """Whether a message is a turn of the assistant that is trained on (not with `weight: 0`)."""
    return message["role"] == "assistant" and message.get("weight") != 0


def _without_weight(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "weight"}


def _with_system(messages: list[Message], row: Row) -> list[Message]:
    """`messages` with the system turn from the row's system column."""
    column = next((name for name in SYSTEM if row.get(name)), None)
    text = as_text(row[column], column) if column else ""
    if not text.strip():
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != text.strip():
            raise Unusable(
                "two system turns",
                f"column {column!r} and the conversation have different system turns",
            )
        return messages
    return [{"role": "system", "content": text}, *messages]


def _tools(row: Row) -> list[dict[str, Any]] | None:
    """The tools in column `tools`: a list of objects, as values or JSON, or one object as JSON."""
    value = json_in(row.get("tools"))
    if not value:
        return None
    tools = [json_in(tool) for tool in value] if isinstance(value, list) else [value]
    if not all(isinstance(tool, dict) for tool in tools):
        raise Unusable("tools", f"column 'tools' holds {short(row['tools'])}, a list of descriptions is needed")
    return tools
