"""What the verifier judges of a pair: its reference, whether it can be judged, and the proof on annotated responses."""

from __future__ import annotations

from iris_core.common.errors import DataError
from iris_core.config import VerificationPart
from iris_core.data.pairs import Pair
from iris_core.verification.patterns import extract
from iris_core.verification.verdicts import Case
from iris_core.verification.verifier import open_verifier

PATTERNED = ("answer", "math")  # an annotated response without the pattern has no answer to compare with
PROVED = 64  # annotated responses, half of them held out
FIRST = 4  # judged alone first: a verifier that never answers is found without waiting for all


def reference_of(pair: Pair, settings: VerificationPart, pattern: str | None) -> str | None:
    """What responses to the prompt of `pair` are compared with; None: there is nothing."""
    if pair.reference is not None or not pair.annotated:
        return pair.reference
    if settings.kind in PATTERNED and pattern is not None and extract(pattern, pair.response) is None:
        return None
    return pair.response


def case_of(
    pair: Pair, response: str, settings: VerificationPart, pattern: str | None, *, truncated: bool = False
) -> Case:
    """A response to the prompt of `pair`, for the verifier."""
    return Case(pair.prompt, response, reference_of(pair, settings, pattern), truncated)


def judgeable(pairs: list[Pair], settings: VerificationPart, pattern: str | None) -> list[Pair]:
    """Those of `pairs` whose responses the verifier can judge."""
    if not settings.needs_reference:
        return pairs
    return [pair for pair in pairs if reference_of(pair, settings, pattern) is not None]


def prove(pairs: list[Pair], settings: VerificationPart, pattern: str | None) -> list[str]:
    """Judges annotated responses: a verifier that finds them wrong is not the one for this data.

    Args:
        pairs: of both splits.
        settings: the verifier's.
        pattern: `data.answer_pattern`.

    Returns:
        A warning if some are not right.

    Raises:
        DataError: none is right.
        VerificationError: the verifier does not work.
    """
    annotated = judgeable([pair for pair in pairs if pair.annotated], settings, pattern)
    heldout = [pair for pair in annotated if pair.split == "heldout"][: PROVED // 2]
    chosen = [*heldout, *(pair for pair in annotated if pair.split == "train")][:PROVED]
    cases = [case_of(pair, pair.response, settings, pattern) for pair in chosen]
    if not cases:
        raise DataError(f"verification.kind: {settings.kind} has no reference in any annotated pair: choose another")
    with open_verifier(settings, pattern) as verifier:
        verdicts = [*verifier.verify(cases[:FIRST]), *verifier.verify(cases[FIRST:])]
    missed = [(case, found) for case, found in zip(cases, verdicts, strict=True) if found.verdict != "right"]
    if not missed:
        return []
    case, found = missed[0]
    example = f"such as {case.response[-80:]!r} ({found.verdict}: {found.reason})"
    if len(missed) == len(cases):
        raise DataError(
            f"verification.kind: {settings.kind} finds none of {len(cases)} annotated responses right, {example}: fix "
            "the data, or the settings of the verifier"
        )
    return [
        f"verification.kind: {settings.kind} does not find {len(missed)} of {len(cases)} annotated responses right, "
        f"{example}"
    ]
