"""What self-play did to the model, in one sentence and in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence

from iris_core.common.intervals import Interval
from iris_core.config.verification import accuracy_name
from iris_core.reporting.report import Tile
from iris_core.reporting.summary import Row, verifier_in


def sentence(found: Sequence[Row]) -> str:
    """What self-play did to the model. A change within the intervals is not called a rise or a fall."""
    trained = [row for row in found if row.iteration is not None]
    if not trained:
        return "No iteration has finished training yet."
    first, last = found[0], trained[-1]
    count = len(trained)
    parts = [
        _change(f"{accuracy_name(verifier_in(found))} on held-out prompts", first.exact_match, last.exact_match, 2),
        _change(
            "the held-out log-probability of annotated answers (nats a token)",
            first.logprob,
            last.logprob,
            3,
        ),
    ]
    if first.average is not None and last.average is not None and first is not last:
        label = f"{last.label} benchmark average" if last.label else "benchmark average"
        parts.append(_change(f"the {label} (percent, ±1.96 standard errors)", _percent(first), _percent(last), 1))
    changes = "; ".join(part for part in parts if part) or "nothing was measured both before and after"
    return f"After {count} iteration{'s' if count > 1 else ''} of self-play, {changes}."


def tiles(found: Sequence[Row]) -> list[Tile]:
    """The most important numbers, before and after."""
    trained = [row for row in found if row.iteration is not None]
    if not trained:
        return []
    first, last = found[0], trained[-1]
    label = f"{last.label} average, %" if last.label else "benchmark average, %"
    pairs = [
        (f"held-out {accuracy_name(verifier_in(found))}", first.exact_match, last.exact_match, 2),
        ("held-out log-prob per token", first.logprob, last.logprob, 3),
    ]
    shown = [
        _tile(name, old.value, new.value, digits, f"95 % [{new.low:.{digits}f},\u00a0{new.high:.{digits}f}]")
        for name, old, new, digits in pairs
        if old and new
    ]
    if first.average is not None and last.average is not None and last.stderr is not None:
        note = f"standard error {100 * last.stderr:.1f}"
        shown.append(_tile(label, 100 * first.average, 100 * last.average, 1, note))
    if len(trained) > 1 and trained[0].gap and last.gap:
        note = f"ESS {last.gap.ess:.0f} of {last.gap.pairs}"
        name = "gap D̂, first and last iteration"
        shown.insert(2, _tile(name, trained[0].gap.value, last.gap.value, 3, note))
    return shown


def _tile(name: str, before: float, after: float, digits: int, note: str) -> Tile:
    return Tile(name=name, before=f"{before:.{digits}f}", after=f"{after:.{digits}f}", note=note)


def _change(what: str, old: Interval | None, new: Interval | None, digits: int) -> str:
    if old is None or new is None:
        return ""
    apart = new.low > old.high or new.high < old.low
    verb = ("rose" if new.value > old.value else "fell") if apart else "moved within its intervals"
    before, after = (f"{interval:.{digits}f}".replace(", ", ",\u00a0") for interval in (old, new))
    return f"{what} {verb} from {before} to {after}"


def _percent(row: Row) -> Interval | None:
    """The average and 1.96 standard errors around it; None if the error is unknown: then no change can be claimed."""
    if row.average is None or row.stderr is None:
        return None
    center, half = 100 * row.average, 196 * row.stderr
    return Interval(value=center, low=max(0.0, center - half), high=min(100.0, center + half))
