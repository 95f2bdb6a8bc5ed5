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


class Unusable(Exception):
    """A conversation that makes no pair: the reason, to count by, and the detail, to show."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def text_of(message: Message) -> str:
    """The text of a message; of parts, all of them; "" where there is none (a tool call)."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)
