"""Converts messages of data sets (role/content, from/value, transcripts) to those that chat templates take."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from iris_core.data.conversations import Message, Unusable

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
KEPT = (
    "name",
    "tool_call_id",
    "reasoning_content",
    "thinking",
)  # what templates use besides role, content and tool calls
LEARNED = ("weight", "train", "training", "loss")  # 0 or false here: the turn is not trained on
BEFORE: dict[str, set[str | None]] = {  # the roles that may come before a turn; None: it may be the first
    "system": {None},
    "user": {None, "system", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


def as_text(value: Any, column: str) -> str:
    """`value` as text, spelled as in the file; "" for None.

    Raises:
        Unusable: it is neither text nor a number or a boolean.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise Unusable(
            "not text",
            f"column {column!r} holds {short(value)} ({type(value).__name__}), text is needed",
        )
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Unusable(
            "not text",
            f"column {column!r} holds half of a surrogate pair, which is no text: {value[:60]!r}",
        )
    return value


def messages_of(value: Any, role: str, column: str) -> list[Message]:
    """The messages in a value: a list of messages, such a list as JSON, one message, or the text of one by `role`.

    Raises:
        Unusable: a message has an unknown role, or content that is no text; or the list is written in Python's syntax.
    """
    if isinstance(value, str) and _are_messages(parsed := json_in(value)):
        value = parsed
    elif isinstance(value, str) and _are_messages(_python_in(value)):
        raise Unusable(
            "not messages",
            f"column {column!r} holds messages as Python writes them, {short(value)}: write them as JSON",
        )
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [_message(item, column) for item in value]
    return [{"role": role, "content": as_text(value, column)}]


def conversation_in(value: Any, column: str) -> list[Message]:
    """The messages in a column that must hold a list of them, or such a list as JSON.

    Raises:
        Unusable: it holds something else.
    """
    parsed = json_in(value)
    if parsed is None:
        return []
    if not isinstance(parsed, list) or not all(isinstance(item, dict) for item in parsed):
        raise Unusable("not messages", f"column {column!r} holds {short(value)}, a list of messages is needed")
    return messages_of(parsed, "user", column)


def transcript_in(value: Any) -> list[Message] | None:
    r"""The messages of a transcript "\n\nHuman: …\n\nAssistant: …" (Anthropic's HH); None for other values."""
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return None
    parts = TRANSCRIPT.split(value)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def check_order(messages: Sequence[Message]) -> None:
    """Checks the order of turns: system first, then user and assistant alternating, tools after an assistant's turn.

    Raises:
        Unusable: a turn is in the wrong place.
    """
    previous: str | None = None
    for number, message in enumerate(messages, 1):
        if previous not in BEFORE[message["role"]]:
            after = f"after {previous!r}" if previous else "first"
            raise Unusable(
                "order of roles",
                f"message {number} is by {message['role']!r}, which cannot stand {after}",
            )
        previous = message["role"]


def json_in(value: Any) -> Any:
    """The value of a text that is a JSON list or object; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _python_in(text: str) -> Any:
    """The value of a text that is a list of mappings in Python's syntax; None for other texts."""
    if not text.lstrip().startswith("[{"):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and item.get("role", item.get("from")) in ROLES for item in value)
    )


def _message(item: dict[str, Any], column: str) -> Message:
    who = item.get("role", item.get("from"))
    role = ROLES.get(who) if isinstance(who, str) else None
    if role is None:
        raise Unusable("unknown role", f"column {column!r} has a message by {who!r}; known: {', '.join(ROLES)}")
    content = item.get("content", item.get("value"))
    kept = {name: item[name] for name in KEPT if item.get(name)}
    if any(_is_off(item.get(name)) for name in LEARNED):
        kept["weight"] = 0
    calls = content if who == "function_call" else item.get("tool_calls") or item.get("function_call")
    if calls:
        kept["tool_calls"] = _calls(calls, column)
    text = "" if who == "function_call" else _content(content, column)
    return {"role": role, "content": text, **kept}


def _is_off(value: Any) -> bool:
    return str(value).lower() in ("0", "0.0", "false")


def _content(value: Any, column: str) -> str:
    """The text of a message's content, with text parts joined."""
    if not isinstance(value, list):
        return as_text(value, column)
    return "".join(_part(part, column) for part in value)


def _part(part: Any, column: str) -> str:
    if not isinstance(part, dict):
        return as_text(part, column)
    if part.get("type", "text") != "text" or "text" not in part:
        raise Unusable(
            "not text",
            f"column {column!r} has a part of type {part.get('type')!r}: only text can be trained on",
        )
    return as_text(part["text"], column)


def _calls(value: Any, column: str) -> list[dict[str, Any]]:
    """Tool calls: one or a list, as values or JSON, each {"name", "arguments"} or {"function": {…}}."""
    parsed = json_in(value)
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(call, dict) for call in calls):
        raise Unusable(
            "tool call",
            f"column {column!r} holds {short(value)} for tool calls, objects are needed",
        )
    return [_call(call, column) for call in calls]


def _call(call: dict[str, Any], column: str) -> dict[str, Any]:
    """A tool call in the form of chat templates, with its arguments as values, not as JSON."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unusable("tool call", f"column {column!r} has a tool call without a name: {short(call)}")
    arguments = json_in(function.get("arguments", {}))
    kept = {name: value for name, value in call.items() if name in ("id", "type")}
    return {
        "type": "function",
        **kept,
        "function": {"name": function["name"], "arguments": arguments},
    }


def short(value: Any) -> str:
    """`value` for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
