r"""Text of users and models as text, in every medium that would take a part of it for something else.

    plain("\x1b[31mred")      # '\x1b[31mred', for terminals, logs and pages: no character that only acts
    one_line("a\nb")          # 'a ⏎ b', the same on one line
    markdown("<b>*a*</b>")    # '\<b\>\*a\*\</b\>', for Prefect's artifacts and MLflow's descriptions

HTML is Jinja's part (autoescape, with `plain` as its `finalize`), a terminal's markup rich's (`rich.text.Text`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline: ANSI, OSC 8, carriage return, bell
    "\u202a-\u202e\u2066-\u2069"  # change the direction of the text around them
    "\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f]"  # break lines; are no characters; are not seen
)
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>!#|~&@$^]|:(?=//)|(?<=www)\.")  # addresses become links


def plain(text: str) -> str:
    r"""`text` with its control characters written out, as in `\x1b`; tabs and newlines stay."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`plain` on one line."""
    return " ⏎ ".join(plain(text).split("\n"))


def markdown(text: str) -> str:
    """`text` for a place inside a line of Markdown, where nothing of it is markup, HTML, a link or an image."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of texts, aligned to the right."""
    lines = [map(markdown, header), ["---:"] * len(header), *(map(markdown, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
