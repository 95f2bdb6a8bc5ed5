"""What the annotated data is, whatever its format was: an assistant's turn, and the conversation before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": ...}, as chat templates take them


@dataclass(frozen=True)
class Conversation:
    """An assistant's turn and what came before it.

    Attributes:
        messages: the turns before the answer, in the format of chat templates; a system turn of its own included.
        answer: the assistant's turn, {"role": "assistant", "content": text}, with tool calls where it has any.
        place: where it stands in the source, for messages: "row 17" or "row 17, turn 2".
        tools: descriptions of the tools that the template is given, or None.
    """

    messages: list[Message]
    answer: Message
    place: str
    tools: list[dict[str, Any]] | None = None


def single_turn(question: str, answer: str, place: str = "") -> Conversation:
    """A conversation of one message of the user and its answer."""
    messages = [{"role": "user", "content": question}]
    return Conversation(messages, {"role": "assistant", "content": answer}, place)
