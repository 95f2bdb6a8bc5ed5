"""Annotated data after reading, independent of its format: conversations, and what was read of each source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

Message = dict[str, Any]  # {"role": ..., "content": ...}, as chat templates take them


@dataclass(frozen=True)
class Conversation:
    """An assistant's turn and the conversation before it.

    Attributes:
        messages: the turns before the answer, with the system turn if there is one, in the format of chat templates.
        answer: the assistant's turn, {"role": "assistant", "content": text}, with tool calls where it has any.
        place: where it is in the source, for messages: "row 17" or "row 17, turn 2".
        tools: descriptions of the tools, for the chat template, or None.
        annotated: whether the answer is an annotated one; otherwise a placeholder stands there.
        reference: what a verifier compares responses with, instead of the annotated answer.
    """

    messages: list[Message]
    answer: Message
    place: str
    tools: list[dict[str, Any]] | None = None
    annotated: bool = True
    reference: str | None = None


def single_turn(question: str, answer: str, place: str = "") -> Conversation:
    """A conversation with one message of the user and its answer."""
    messages = [{"role": "user", "content": question}]
    return Conversation(messages, {"role": "assistant", "content": answer}, place)


class SourceRecord(BaseModel):
    """What was read of one source.

    Attributes:
        path: as in the settings.
        revision: the commit, if it is on the hub.
        format: of its rows.
        rows: how many it has.
        used: how many are used.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: str
    revision: str | None = None
    format: str
    rows: int
    used: int


class Unusable(Exception):
    """A conversation that cannot become a pair: a reason, which is counted, and a detail, which is shown."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def text_of(message: Message) -> str:
    """The text of a message, with all its parts joined; "" if it has none, as a tool call."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)
