"""Which of two versions is the champion, the best so far: a rule over what was measured, without any server.

The initial model is a version and the first champion. A later version replaces it if it is better:

- One measure decides: the first of these that the champion has. They are the average of real benchmarks, held-out exact
  match, and held-out log-probability per token of the annotated responses. Scores with a label ("miniature") never
  decide.
- Better means: on the same items, asked in the same way, the mean of the paired differences is above 0. The note of the
  challenger has the difference with its 95 % interval, and says "within noise" if that contains 0. On a tie the earlier
  version stays.
- A version that lacks the deciding measure, or has a value that is not a number, never becomes champion.
- Measures with other settings or other held-out pairs are not compared: the champion stays, and the note says why.
- A champion that a person chose is replaced by the same rule.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from iris_core.config.verification import accuracy_name
from iris_core.tracking.measures import Measure, Measures, paired_difference

CRITERIA = {
    "average": "benchmark average",
    "exact_match": "held-out exact match",
    "logprob": "held-out log-prob per token",
}
CHAMPION = "champion"
# the first words of notes
FORMER, LOST, UNCOMPARED = "champion until", "not better than the champion", "not compared"


class Verdict(NamedTuple):
    """Whether the challenger becomes champion, why (not) in one line, and whether the two could be compared at all."""

    wins: bool
    note: str
    compared: bool = True


def challenge(challenger: Measures, champion: Measures | None, holder: str) -> Verdict:
    """Compares two versions.

    Args:
        challenger: what the new version scored.
        champion: what the champion scored; None: that is no longer known.
        holder: the name of the champion in the note, such as "version 3".
    """
    criterion = next((name for name in CRITERIA if getattr(champion, name, None)), None)
    if champion is None or criterion is None:
        return _not_compared(f"the champion, {holder}, has no measures in MLflow")
    theirs: Measure = getattr(champion, criterion)
    named = _named(criterion, theirs)
    ours: Measure | None = getattr(challenger, criterion)
    if ours is None:
        return _not_compared(f"it has no {named}, which the champion, {holder}, is measured by")
    if not ours.same_items(theirs):
        return _not_compared(f"the champion, {holder}, has its {named} from {_difference(theirs, ours)}")
    change = paired_difference(ours, theirs)
    found = f"{named} {change:+.3f} against {holder}, {ours.items} items"
    if change.value > 0:
        noise = ", within noise" if change.low <= 0 else ""
        return Verdict(True, f"champion: {found}{noise}")
    return Verdict(False, f"{LOST}: {found}")


def first_champion(challenger: Measures, initial: bool) -> Verdict:
    """The verdict without a champion: the initial model wins in any case, another version if something was measured."""
    if initial:
        return Verdict(True, "champion: the initial model, which iterations have to beat")
    if not any(getattr(challenger, name) for name in CRITERIA):
        return _not_compared("nothing was measured")
    return Verdict(True, "champion: the first version with a measure")


def again(note: str, champion: bool) -> Verdict:
    """The verdict of a challenge that is over, by its note, and whether the version was champion then or is now."""
    return Verdict(champion, note, compared=not note.startswith(UNCOMPARED))


def _named(criterion: str, measure: Measure) -> str:
    """What a criterion is called; a verifier that judged held-out answers is named."""
    verification = measure.settings.get("verification")
    if criterion == "exact_match" and verification:
        return f"held-out {accuracy_name(verification['kind'])}"
    return CRITERIA[criterion]


def _not_compared(reason: str) -> Verdict:
    remedy = f"measure both in the same way, or set the alias `{CHAMPION}` to this version yourself"
    return Verdict(False, f"{UNCOMPARED}: {reason}: {remedy}", compared=False)


def _difference(champion: Measure, challenger: Measure) -> str:
    """The first setting that differs, as "other settings (limit: 100, here null)"."""
    old, new = champion.settings, challenger.settings
    for name in (name for name in sorted({*old, *new}) if name not in ("pairs", "protocol")):
        if old.get(name) != new.get(name):
            return f"other settings ({name}: {json.dumps(old.get(name))}, here {json.dumps(new.get(name))})"
    if old.get("protocol") != new.get("protocol"):
        return "another protocol (items, shots or templates of the benchmarks)"
    return "other held-out pairs"
