"""Numbers and tables of the study's pages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.study.results import Interval


@dataclass(frozen=True)
class Numbers:
    """A mapping for `str.format` that computes its values with `text`."""

    text: Callable[[str], str]

    def __getitem__(self, key: str) -> str:
        return self.text(key)


def spread(found: Interval) -> str:
    """A mean with half its interval."""
    if not math.isfinite(found.value):
        return "diverged"
    return f"{found.value:.3f} ± {found.high - found.value:.3f}"


def signed(found: Interval) -> str:
    """A difference with half its interval, in bold type where the interval excludes zero."""
    text = f"{found.value:+.3f} ± {found.high - found.value:.3f}"
    return f"**{text}**" if found.excludes_zero else text


def markdown(header: list[str] | tuple[str, ...], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
