"""What `data.answer_pattern` finds in a text."""

from __future__ import annotations

import re


def extract(pattern: str, text: str) -> str | None:
    """The answer in `text`: what the last match of `pattern` captures, or all of the match without a group, stripped.

    None where the pattern does not match. A pattern may take exponential time: texts of a model under training are
    searched in a verifier's process only, which has a time limit, wherever there is one.
    """
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if not found:
        return None
    last = found[-1]
    return str(last.group(last.lastindex or 0)).strip()
