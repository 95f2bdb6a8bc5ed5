"""Rows of every format as conversations, and the rows and columns that are refused."""

from __future__ import annotations

import json

import pytest

from iris_core.common.errors import DataError
from iris_core.config import Source
from iris_core.data.conversations import Unusable
from iris_core.data.formats import conversations_in, format_of, prompts_in, selected, with_reference

pytestmark = pytest.mark.unit


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(row, turns="all", **source):
    """The detected format, and each conversation as (messages before, answer)."""
    columns = [name for name, value in row.items() if value is not None]
    form = format_of(Source(path="x", **source), columns, "x")
    found = selected(conversations_in(row, form, "row 0"), turns)
    return form.name, [(each.messages, each.answer) for each in found]


DIALOG = [user("a"), assistant("b"), user("c"), assistant("d")]
BOTH_TURNS = [(DIALOG[:1], DIALOG[1]), (DIALOG[:3], DIALOG[3])]
SHAREGPT = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "a"},
    {"from": "gpt", "value": "b"},
]


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"prompt": "a", "response": "b"}, "pairs", [([user("a")], assistant("b"))]),
        (
            {"prompt": "a", "response": "b", "system": "s"},
            "pairs",
            [([system("s"), user("a")], assistant("b"))],
        ),
        (
            {"instruction": "Translate.", "input": "cat", "output": "chat", "text": "…"},
            "alpaca",
            [([user("Translate.\n\ncat")], assistant("chat"))],
        ),
        (
            {"instruction": "Name one.", "input": "", "output": "red", "system": "s"},
            "alpaca",
            [([system("s"), user("Name one.")], assistant("red"))],
        ),
        (
            {"instruction": "Who?", "context": "Ann sings.", "response": "Ann", "category": "qa"},
            "alpaca",
            [([user("Who?\n\nAnn sings.")], assistant("Ann"))],
        ),
        (
            {"instruction": "c", "output": "d", "history": [["a", "b"]]},
            "alpaca",
            [(DIALOG[:3], DIALOG[3])],
        ),
        ({"conversations": SHAREGPT}, "sharegpt", [([system("s"), user("a")], assistant("b"))]),
        (
            {"conversations": SHAREGPT[1:], "system": "s"},
            "sharegpt",
            [([system("s"), user("a")], assistant("b"))],
        ),
        ({"messages": DIALOG, "prompt": "a"}, "messages", BOTH_TURNS),
        ({"messages": [*DIALOG, user("e")]}, "messages", BOTH_TURNS),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", [([user("a")], assistant("b"))]),
        (
            {"prompt": DIALOG[:3], "completion": DIALOG[3:]},
            "prompt_completion",
            [(DIALOG[:3], DIALOG[3])],
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "x"}, "preference", [([user("a")], assistant("b"))]),
        (
            {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": []},
            "preference",
            [([user("a")], assistant("b"))],
        ),
        ({"prompt": DIALOG[:3], "chosen": DIALOG[3:]}, "preference", [(DIALOG[:3], DIALOG[3])]),
        ({"chosen": DIALOG, "rejected": DIALOG}, "preference", [(DIALOG[:3], DIALOG[3])]),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "…"},
            "preference",
            [(DIALOG[:3], DIALOG[3])],
        ),
        (
            {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "chosen": " d"},
            "preference",
            [(DIALOG[:3], assistant(" d"))],
        ),
    ],
)
def test_formats_are_found_out_from_columns(row, name, expected):
    assert read(row) == (name, expected)
    assert read(row, format=name) == (name, expected)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [("first", BOTH_TURNS[:1]), ("last", BOTH_TURNS[1:]), ("all", BOTH_TURNS)],
)
def test_turns(turns, expected):
    assert read({"messages": DIALOG}, turns)[1] == expected


def test_places_of_turns():
    form = format_of(Source(path="x"), ["messages"], "x")
    turns = selected(conversations_in({"messages": DIALOG}, form, "row 7"), "last")
    assert [each.place for each in turns] == ["row 7, turn 2"]
    single = conversations_in({"messages": DIALOG[:2]}, form, "row 7")
    assert [each.place for each in single] == ["row 7"]


def test_columns_that_are_set_win_over_the_format_found():
    row = {"instruction": "Translate.", "input": "cat", "output": "chat"}
    name, found = read(row, prompt_column="instruction", response_column="output")
    assert (name, found) == ("pairs", [([user("Translate.")], assistant("chat"))])
    form = format_of(Source(path="x", prompt_column="instruction", response_column="output"), row, "x")
    assert form.unread(row) == (
        "read as pairs, without what is in column 'input': leave out prompt_column and response_column, and set "
        "data.format: alpaca"
    )
    assert not format_of(Source(path="x"), row, "x").unread(row)


@pytest.mark.parametrize("column", ["context", "passage", "document", "choices"])
def test_what_a_question_is_about_is_not_dropped_silently(column):
    columns = ["question", column, "answer"]
    form = format_of(Source(path="x", prompt_column="question", response_column="answer"), columns, "x")
    assert form.unread(columns) == f"read as pairs, without what is in column {column!r}: join it to the prompt"


def test_columns_with_messages():
    both = {"prompt_column": "talk", "response_column": "talk"}
    assert read({"talk": DIALOG}, **both) == ("messages", BOTH_TURNS)
    assert read({"q": DIALOG[:3], "a": [DIALOG[3]]}, prompt_column="q", response_column="a")[1] == (BOTH_TURNS[1:])
    repeated = {"prompt": "a", "talk": [system("s"), *DIALOG]}
    assert read(repeated, response_column="talk")[1] == [
        ([system("s"), *DIALOG[:1]], DIALOG[1]),
        ([system("s"), *DIALOG[:3]], DIALOG[3]),
    ]
    with pytest.raises(Unusable, match="'talk' does not begin with the prompt in column 'prompt'"):
        read({"prompt": "z", "talk": DIALOG}, response_column="talk")


def test_parts_of_content_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [user(parts), assistant("c")]}
    assert read(row)[1] == [([user("ab")], assistant("c"))]
    row["messages"][0]["content"].append({"type": "image", "url": "x.png"})
    with pytest.raises(Unusable, match="a part of type 'image': only text can be trained on"):
        read(row)


CALL = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}},
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                user("a"),
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "rain"},
                assistant("It rains."),
            ],
            "tools": TOOLS,
        },
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {
                    "from": "function_call",
                    "value": '{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}',
                },
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "It rains."},
            ],
            "tools": '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]',
        },
    ],
)
def test_tool_turns_are_kept(row):
    form = format_of(Source(path="x"), list(row), "x")
    call, answer = conversations_in(row, form, "row 0")
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert (call.messages, call.answer) == ([user("a")], called)
    assert answer.messages == [user("a"), called, {"role": "tool", "content": "rain"}]
    assert answer.answer == assistant("It rains.")
    assert call.tools == answer.tools == TOOLS


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": "0"}, {"train": False}, {"training": "false"}, {"loss": False}],
)
def test_a_turn_marked_as_not_to_be_trained_on_is_context(mark):
    row = {"messages": [user("a"), {**assistant("b"), **mark}, user("c"), assistant("d")]}
    assert read(row)[1] == BOTH_TURNS[1:]
    kept = dict.fromkeys(mark, 1) | {"weight": 1}
    row = {"messages": [user("a"), {**assistant("b"), **kept}, user("c"), assistant("d")]}
    assert read(row)[1] == BOTH_TURNS


def test_messages_in_a_cell_of_text():
    prompt, answer = json.dumps(DIALOG[:3]), json.dumps(DIALOG[3:])
    assert read({"prompt": prompt, "response": answer})[1] == BOTH_TURNS[1:]
    assert read({"prompt": prompt, "chosen": answer})[1] == BOTH_TURNS[1:]
    with pytest.raises(Unusable, match="'prompt' holds messages as Python writes them, .*as JSON"):
        read({"prompt": str(DIALOG[:3]), "response": "d"})
    for text in ('[{"from": "Ulm", "to": "Bonn"}]', "[{'a': 1}]", "[{", '[{"role": "x"}]', "[]"):
        assert read({"prompt": text, "response": text})[1] == [([user(text)], assistant(text))]


def test_a_transcript_is_a_conversation_in_pairs_too():
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert read({"prompt": prompt, "response": "d"})[1] == BOTH_TURNS[1:]


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (
            {"messages": [assistant("b"), user("a")]},
            "order of roles",
            "message 1 is by 'assistant', which cannot stand first",
        ),
        (
            {"messages": [user("a"), user("b"), assistant("c")]},
            "order of roles",
            "message 2 is by 'user', which cannot stand after 'user'",
        ),
        ({"messages": [user("a"), system("s"), assistant("c")]}, "order of roles", "message 2 is by 'system'"),
        (
            {"messages": [user("a"), {"role": "narrator", "content": "b"}]},
            "unknown role",
            "a message by 'narrator'; known: system",
        ),
        ({"messages": [user("a")]}, "empty response", "no annotated turn of the assistant"),
        ({"messages": "text"}, "not messages", "column 'messages' holds 'text', a list of messages is needed"),
        ({"messages": [user("a"), assistant({"x": 1})]}, "not text", r"holds \{'x': 1\} \(dict\), text is needed"),
        (
            {"prompt": "a", "response": ["b", "c"]},
            "not text",
            r"column 'response' holds \['b', 'c'\] \(list\), text is needed",
        ),
        ({"prompt": "\ud83d", "response": "b"}, "not text", "half of a surrogate pair"),
        ({"prompt": "a", "response": "b", "images": ["x.png"]}, "not text", "column 'images' is filled"),
        (
            {"messages": [system("s"), user("a"), assistant("b")], "system": "t"},
            "two system turns",
            "different system turns",
        ),
        ({"chosen": "b"}, "empty prompt", "there is no column 'prompt'"),
    ],
)
def test_rows_that_cannot_be_understood(row, reason, message):
    with pytest.raises(Unusable, match=message) as caught:
        read(row)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("columns", "source", "message"),
    [
        (
            ["question", "answer"],
            {},
            "x has no columns of a known format; it has 'question', 'answer': set data.prompt_column",
        ),
        (
            ["messages", "chosen", "prompt"],
            {},
            "its columns fit the formats messages, preference: set data.format to one of them",
        ),
        (
            ["prompt", "response"],
            {"response_column": "answer"},
            "x has no column 'answer'; it has 'prompt', 'response': set data",
        ),
        (["prompt", "response"], {"format": "alpaca"}, "x has no column 'instruction'; it has"),
    ],
)
def test_columns_that_are_refused(columns, source, message):
    with pytest.raises(DataError, match=message):
        format_of(Source(path="x", **source), columns, "x")


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"prompt": "a"}, "pairs", [[user("a")]]),
        ({"prompt": "a", "response": ["no", "text"]}, "pairs", [[user("a")]]),
        ({"prompt": DIALOG[:3]}, "pairs", [DIALOG[:3]]),
        ({"instruction": "c", "input": "d"}, "alpaca", [[user("c\n\nd")]]),
        ({"instruction": "c", "response": "d"}, "alpaca", [[user("c")]]),
        ({"conversations": SHAREGPT[:2]}, "sharegpt", [[system("s"), user("a")]]),
        ({"conversations": SHAREGPT}, "sharegpt", [[system("s"), user("a")]]),
        ({"messages": DIALOG}, "messages", [DIALOG[:1], DIALOG[:3]]),
        ({"messages": DIALOG[:3]}, "messages", [DIALOG[:1], DIALOG[:3]]),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", [[user("a")]]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", [[user("a")]]),
        ({"chosen": DIALOG, "rejected": DIALOG[:2]}, "preference", [DIALOG[:3]]),
    ],
)
def test_prompts_are_read_in_every_format_and_answers_ignored(row, name, expected):
    form = format_of(Source(path="x"), [key for key in row if row[key] is not None], "x", annotated=False)
    found = prompts_in(row, form, "row 0")
    assert form.name == name
    assert [each.messages for each in found] == expected
    assert not any(each.annotated for each in found)
    assert {each.answer["content"] for each in found} == {"answer"}


def test_columns_of_prompts_that_are_set():
    source = Source(path="x", prompt_column="question", response_column="solution")
    form = format_of(source, ["question"], "x", annotated=False)
    (found,) = prompts_in({"question": "a"}, form, "row 0")
    assert found.messages == [user("a")]
    with pytest.raises(DataError, match="x has no column 'solution'"):
        format_of(source, ["question"], "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [("SELECT 1", "SELECT 1"), (7, "7"), ({"a": [1, "ü"]}, '{"a": [1, "ü"]}'), ([], "[]")],
)
def test_a_reference_belongs_to_the_last_turn_of_its_row(value, text):
    row = {"messages": DIALOG, "gold": value}
    form = format_of(Source(path="x"), list(row), "x")
    found = with_reference(conversations_in(row, form, "row 0"), row, "gold")
    assert [each.reference for each in found] == [None, text]
