"""Stage `schedule`: the next order α from the gaps measured so far, and whether there is more to learn.

python -m iris_core.schedule --spec spec.json --out DIR
"""

from __future__ import annotations

from pathlib import Path

from iris_core.common.files import write_atomic
from iris_core.execution.stage import main
from iris_core.objectives.order import confirmed_gap, converged, next_order
from iris_core.pipeline.metrics import ScheduleMetrics
from iris_core.pipeline.specs import ScheduleSpec
from iris_core.store import Outcome


def schedule(spec: ScheduleSpec, out: Path) -> Outcome:
    """Decides the next order and whether the loop has converged."""
    gaps = [confirmed_gap(gap) for gap in spec.gaps]
    order, reason = next_order(spec.schedule, spec.iteration, spec.iterations, spec.order, gaps)
    done, finding = converged(spec.movement)
    decision = ScheduleMetrics(
        order=spec.order,
        next_order=order,
        reason=reason,
        converged=done,
        stop=done and spec.schedule.stop_when_converged,
        finding=finding,
    )
    write_atomic(out / "schedule.json", decision.model_dump_json(indent=1))
    return Outcome(outputs={"schedule": out / "schedule.json"}, metrics=decision)


if __name__ == "__main__":
    main(ScheduleSpec, schedule)
