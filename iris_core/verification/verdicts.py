"""What a verifier is asked, `Case`, and what it answers, `Verdict`; both are lines of JSON between processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from iris_core.common.markup import one_line

VerdictName = Literal["right", "wrong", "undecided"]
NAMES = get_args(VerdictName)
LONGEST_REASON = 160  # characters
MAX_UNDECIDED = 0.1  # share of undecided responses above which there is a warning
NO_REFERENCE = "no reference"
TIMEOUT, MEMORY = "timeout", "memory"  # how a reason begins where a limit is why nothing is known


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

    @property
    def at_limit(self) -> bool:
        """Whether it is undecided because time or memory ran out."""
        return self.verdict == "undecided" and self.reason.startswith((TIMEOUT, MEMORY))

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


def undecided_warnings(rows: Iterable[Mapping[str, Any]], what: str) -> list[str]:
    """A warning if many of `rows` with `verdict` and `reason` are undecided; `what` says what they are verdicts on."""
    verdicts = list(rows)
    reasons = Counter(found["reason"] for found in verdicts if found["verdict"] == "undecided")
    if reasons.total() <= MAX_UNDECIDED * len(verdicts):
        return []
    (reason, count), *_ = reasons.most_common(1)
    return [
        f"verification: {reasons.total()} of {len(verdicts)} {what} are undecided, {count} of them for the reason "
        f"{reason!r}"
    ]


def short(text: str) -> str:
    """`text` on one line, without control characters and not too long."""
    return one_line(text.strip()[: 2 * LONGEST_REASON])[:LONGEST_REASON]
