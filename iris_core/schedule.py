"""Stage `schedule`: the next order α from the gaps measured so far.

    python -m iris_core.schedule --spec spec.json --out DIR

A large gap between data and opponent gets a large order (sharp weights), a small one a small order (smooth refinement).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from iris_core.config import SchedulePart
from iris_core.specs import Gap, ScheduleSpec
from iris_core.stage import main
from iris_core.store import Outcome, write_atomic


def next_order(
    schedule: SchedulePart, iteration: int, iterations: int, order: float, gaps: list[Gap]
) -> tuple[float, str]:
    """α_{t+1} and the reason for it.

    adaptive: α_{t+1} = α_min + (α_max − α_min)·min(1, D̂_t / D̂_0), not above α_t unless rising is allowed. Linear and
    cosine go from α_max at iteration 0 to α_min at the last. A gap that is not above 0 counts as 0.

    Args:
        schedule: rule and bounds.
        iteration: t.
        iterations: how many there are.
        order: α_t.
        gaps: D̂_0 … D̂_t.
    """
    low, high = schedule.min_order, schedule.max_order
    done = min(1.0, (iteration + 1) / max(1, iterations - 1))
    if schedule.kind == "constant":
        return high, "constant order"
    if schedule.kind == "linear":
        return high + (low - high) * done, f"linear, {done:.0%} of the way"
    if schedule.kind == "cosine":
        return low + (high - low) * (
            1 + math.cos(math.pi * done)
        ) / 2, f"cosine, {done:.0%} of the way"
    first, last = gaps[0].value, gaps[-1].value
    if min(first, last) <= 0:
        share, reason = (
            0.0,
            f"gap {last:.4g} (first {first:.4g}): training gained nothing on held-out pairs",
        )
    else:
        share = min(1.0, last / first)
        reason = f"gap {last:.4g} is {share:.0%} of the first, {first:.4g}"
    proposed = low + (high - low) * share
    if proposed > order and not schedule.allow_rising:
        return order, f"{reason}; the order does not rise"
    return proposed, reason


def schedule(spec: ScheduleSpec, out: Path) -> Outcome:
    """Decides the next order and whether the loop has converged."""
    order, reason = next_order(
        spec.schedule, spec.iteration, spec.iterations, spec.order, spec.gaps
    )
    gap = spec.gaps[-1]
    converged = gap.low <= 0 <= gap.high
    decision = {
        "order": spec.order, "next_order": order, "converged": converged,
        "stop": converged and spec.schedule.stop_when_converged, "reason": reason,
    }  # fmt: skip
    write_atomic(out / "schedule.json", json.dumps(decision, indent=1))
    return Outcome(outputs={"schedule": out / "schedule.json"}, metrics=decision)


if __name__ == "__main__":
    main(ScheduleSpec, schedule)
