"""Checkpoints of a training run: units of the stage, in its work folder. `iris_core.training.states` fills them."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from iris_core.common.files import write_atomic
from iris_core.execution import distributed, exchange
from iris_core.store.units import Units

HISTORY = "history.jsonl"  # JSON Lines, a row for each optimiser step
NORMALIZER = "normalizer.json"  # state of the normaliser, in a checkpoint
SCHEDULE = "schedule.json"  # state of the learning rate's schedule, in a checkpoint
STATES = "*.safetensors"  # files of the weights and of the optimizer's states, in a checkpoint
KEPT_CHECKPOINTS = 2  # an older one, in case the newest is damaged

log = logging.getLogger(__name__)


def checkpoints(work: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in work.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of)


def path_of(work: Path, step: int) -> Path:
    """The checkpoint after a number of optimiser steps."""
    return work / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """Number of optimiser steps before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(work: Path, units: Units) -> Path | None:
    """The newest complete checkpoint; later ones are deleted, and the history in `work` becomes the checkpoint's."""
    step = distributed.agreed(distributed.together(partial(_newest_step, work, units)))
    if step == 0:
        return None
    newest = path_of(work, step)
    exchange.spread(units.folder, newest)
    return newest


def _newest_step(work: Path, units: Units) -> int:
    """The step of the newest complete checkpoint, on rank 0; 0 if there is none."""
    if distributed.rank():
        return 0
    found = checkpoints(work)
    while found and not _is_whole(found[-1], units):
        found.pop()
    history = (found[-1] / HISTORY).read_text(encoding="utf-8") if found else ""
    write_atomic(work / HISTORY, history)
    return step_of(found[-1]) if found else 0


def _is_whole(checkpoint: Path, units: Units) -> bool:
    """Whether training can go on from a checkpoint; one that an earlier version has written is removed."""
    if not units.holds(checkpoint):
        return False
    if any(checkpoint.glob(STATES)):
        return True
    log.warning("%s holds no safetensors, as earlier versions wrote it: it is redone", checkpoint)
    units.remove(checkpoint)
    return False
