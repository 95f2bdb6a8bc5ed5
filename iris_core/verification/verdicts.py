"""What a verifier is asked, `Case`, and what it answers, `Verdict`; both are lines of JSON between processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from iris_core.common.markup import one_line

VerdictName = Literal["right", "wrong", "undecided"]
NAMES = get_args(VerdictName)
LONGEST_REASON = 160  # characters


@dataclass(frozen=True)
class Case:
    """A response to judge.

    Attributes:
        prompt: the last message of the user.
        response: of the model.
        reference: what to compare with; None: there is nothing.
        truncated: whether the response was cut at its longest length.
    """

    prompt: str
    response: str
    reference: str | None
    truncated: bool = False

    def line(self) -> str:
        """The case as a line of JSON in ASCII, so that lone surrogates pass."""
        return json.dumps({"prompt": self.prompt, "response": self.response, "reference": self.reference})


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of a response.

    Attributes:
        verdict: "right", "wrong", or "undecided" where neither is known.
        reason: why, on one line.
    """

    verdict: VerdictName
    reason: str

    def line(self) -> str:
        """The verdict as a line of JSON."""
        return json.dumps(asdict(self))


Judge = Callable[[Case], Verdict]
"""Judges one response, in the verifier's process. An error that it raises makes the response undecided."""


def parse_verdict(line: str) -> Verdict:
    """The verdict in a line of JSON.

    Raises:
        ValueError: there is none.
    """
    found = json.loads(line)
    if not isinstance(found, dict) or found.get("verdict") not in NAMES:
        raise ValueError("no verdict")
    return Verdict(found["verdict"], short(str(found.get("reason", ""))))


def short(text: str) -> str:
    """`text` on one line, without control characters and not too long."""
    return one_line(text.strip()[: 2 * LONGEST_REASON])[:LONGEST_REASON]
