"""The order schedule: the next order α from the gaps measured so far, and the test for convergence.

A large gap between data and opponent gives a large order (sharp weights), a small gap a small one (smooth refinement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from iris_core.common.intervals import Interval
from iris_core.common.strict import Strict
from iris_core.config import SchedulePart
from iris_core.objectives.gap import Gap

MIN_TRAINING_MARGIN = math.log(2)  # nats: the odds of annotated over synthetic responses have doubled


class Movement(Strict):
    """What an iteration did to the mean log-ratio margin, (log p_θ/p_t)(y) − (log p_θ/p_t)(y'), in nats per pair.

    Attributes:
        training_margin: on pairs that were trained on; None if fewer than two of them have a synthetic response.
        heldout_margin: on held-out pairs.
    """

    training_margin: Interval | None
    heldout_margin: Interval


def next_order(
    schedule: SchedulePart, iteration: int, iterations: int, order: float, gaps: Sequence[float]
) -> tuple[float, str]:
    """α_{t+1} and the reason for it.

    adaptive: α_{t+1} = α_min + (α_max − α_min)·D̂_t / max(D̂_0 … D̂_t), not above α_t unless rising is allowed. While no
    gap is above 0, the order stays α_t. Linear and cosine go from α_max at iteration 0 to α_min at the last iteration.

    Args:
        schedule: rule and bounds.
        iteration: t.
        iterations: how many there are.
        order: α_t.
        gaps: D̂_0 … D̂_t from `confirmed_gap`, none below 0.
    """
    low, high = schedule.min_order, schedule.max_order
    done = min(1.0, (iteration + 1) / max(1, iterations - 1))
    if schedule.kind == "constant":
        return high, "constant order"
    if schedule.kind == "linear":
        return high + (low - high) * done, f"linear, {done:.0%} of the way"
    if schedule.kind == "cosine":
        share = (1 + math.cos(math.pi * done)) / 2
        return low + (high - low) * share, f"cosine, {done:.0%} of the way"
    largest, last = max(gaps), gaps[-1]
    if largest <= 0:
        return order, "no gap above noise so far: the order stays"
    reason = f"gap {last:.4g} is {last / largest:.0%} of the largest, {largest:.4g}"
    proposed = low + (high - low) * last / largest
    if proposed > order and not schedule.allow_rising:
        return order, f"{reason}; the order does not rise"
    return proposed, reason


def confirmed_gap(gap: Gap) -> float:
    """D̂ if the held-out reward margin is above noise, else 0.

    Otherwise a first gap of ±10⁻⁴ would be the reference for all later ones.
    """
    return gap.value if gap.confirmed else 0.0


def converged(movement: Movement) -> tuple[bool, str]:
    """Whether training had an effect on its own pairs but none on held-out pairs, and the reason.

    It had an effect if the odds of annotated over synthetic responses at least doubled: the interval of the training
    margin is above ln 2 and above that of the held-out margin. It had none on held-out pairs if the latter contains 0.
    """
    training, heldout = movement.training_margin, movement.heldout_margin
    if heldout.low > 0:
        return False, f"held-out pairs gained {heldout.value:.3g} nats: there is more to learn"
    if heldout.high < 0:
        return False, f"held-out pairs lost {-heldout.value:.3g} nats: lower training.learning_rate"
    if training is None:
        return False, "fewer than two pairs were trained on with their synthetic response: nothing to compare"
    if training.low <= MIN_TRAINING_MARGIN:
        return (
            False,
            f"the pairs trained on gained only {training.value:.3g} nats: train longer or raise training.learning_rate",
        )
    if training.low <= heldout.high:
        return False, "held-out pairs may have gained as much as those trained on: too few of them"
    return (
        True,
        f"pairs trained on gained {training.value:.3g} nats, held-out ones none above noise",
    )
