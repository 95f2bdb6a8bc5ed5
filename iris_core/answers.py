"""The answer in a response, by `data.answer_pattern`: for exact match on held-out prompts."""

from __future__ import annotations

import re


def extract(pattern: str, text: str) -> str | None:
    """The last capture of `pattern` in `text` (the last match, where it captures nothing), stripped; None if not found."""
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if not found:
        return None
    last = found[-1]
    return str(last.group(last.lastindex or 0)).strip()
