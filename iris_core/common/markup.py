r"""Escapes text of users and models for terminals, logs, pages and Markdown, so that it stays text there.

    plain("\x1b[31mred")      # '\x1b[31mred', for terminals, logs and pages: no control characters
    one_line("a\nb")          # 'a ⏎ b', the same on one line
    markdown("<b>*a*</b>")    # '\<b\>\*a\*\</b\>', for Prefect's artifacts and MLflow's descriptions

Jinja escapes HTML (autoescape, with `plain` as its `finalize`), `rich.text.Text` the markup of terminals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline, as in ANSI and OSC 8 sequences
    "\u202a-\u202e\u2066-\u2069"  # change the direction of the text around them
    "\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f]"  # break lines; are no characters; are invisible
)
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>!#|~&@$^]|:(?=//)|(?<=www)\.")  # addresses become links


def plain(text: str) -> str:
    r"""`text` with its control characters written out, as in `\x1b`; tabs and newlines stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`plain` on one line."""
    return " ⏎ ".join(plain(text).split("\n"))


def markdown(text: str) -> str:
    """`text` escaped for a line of Markdown: none of it is markup, HTML, a link or an image."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of texts, aligned to the right."""
    lines = [map(markdown, header), ["---:"] * len(header), *(map(markdown, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
