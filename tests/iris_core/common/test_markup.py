"""Text that is taken for nothing else: in terminals and logs, and in Markdown as a real parser reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from iris_core.common.markup import markdown, one_line, plain, table

pytestmark = pytest.mark.unit

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=http://e/x onerror=f()>",
    "![x](http://e/x.png?a=1)",
    "[y](javascript:f())",
    "```mermaid\ngraph LR; A-->B\n```",
    "<a href=http://e/a>x</a> | a | b |\n|-|-|",
    "**a** _b_ ~~c~~ `d`",
    "&lt;b&gt;",
    "\\*a\\*",
    "[r]: http://e/x\n[r]",
    "<http://e/x>",
    "# a\n\n- b\n1. c",
    "$x$ :smile: a^b^",
    "a\\",
    "www.e.com me@e.com",
]
parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def texts_of(source: str) -> tuple[set[str], str]:
    """The kinds of what a parser finds inside the lines of `source`, and the text that they show."""
    inside = [child for token in parser.parse(source) for child in token.children or []]
    return {token.type for token in inside}, "".join(token.content for token in inside)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text_in_markdown(text: str) -> None:
    kinds, shown = texts_of(f"- after: {markdown(text)}")
    assert kinds == {"text"}
    assert shown == f"after: {one_line(text)}"


@given(st.text(st.sampled_from("ab \n\\`*_{}[]()<>#+-.!|~&:@$^\"'/=1\t")))
def test_any_text_is_text_in_markdown(text: str) -> None:
    kinds, shown = texts_of(f"x {markdown(text)} x")
    assert kinds == {"text"}
    assert shown.split() == f"x {one_line(text)} x".split()


def test_a_table_has_the_cells_it_was_given() -> None:
    cells = [HOSTILE[:3], HOSTILE[3:6], HOSTILE[6:9]]
    tokens = parser.parse(table(["a|b", "-1.50 [c]", "d"], cells))
    inside = [token for token in tokens if token.type == "inline"]
    assert len(inside) == 12
    assert {child.type for token in inside for child in token.children or []} == {"text"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", "a\\x1b[31mred\\x1b[0m"),
        ("\x1b]8;;http://e\x07x", "\\x1b]8;;http://e\\x07x"),
        ("50 %\r100 %", "50 %\\r100 %"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("a\u2028b\x00\x9b1m\x7f", "a\\u2028b\\x00\\x9b1m\\x7f"),
        ("a\ud800\U000e0041", "a\\ud800\\U000e0041"),
        ("Grüße, 漢字, العربية 👩‍👩‍👧\n\tx", "Grüße, 漢字, العربية 👩‍👩‍👧\n\tx"),
    ],
)
def test_characters_that_act_are_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert one_line(text) == shown.replace("\n", " ⏎ ")
