"""Checkpoints of a training run: units of the stage, in its work folder.

Weights and optimiser states are in the format of torch.distributed.checkpoint. Each rank writes its part, and any
number of ranks can go on from it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from iris_core.common.files import write_atomic
from iris_core.execution import distributed
from iris_core.store.units import Units

HISTORY = "history.jsonl"  # JSON Lines, a row for each optimiser step
NORMALIZER = "normalizer.json"  # state of the normaliser, in a checkpoint
SCHEDULE = "schedule.json"  # state of the learning rate's schedule, in a checkpoint
SHARDS = "shards"  # folder of weights and optimiser states, in a checkpoint
TRAINED = StateDictOptions(ignore_frozen_params=True)


def checkpoints(work: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in work.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Number of optimiser steps before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(work: Path, units: Units) -> Path | None:
    """The newest complete checkpoint; later ones are deleted, and the history in `work` becomes the checkpoint's."""
    if distributed.rank() == 0:
        found = checkpoints(work)
        while found and not units.holds(found[-1]):
            found.pop()
        history = (found[-1] / HISTORY).read_text(encoding="utf-8") if found else ""
        write_atomic(work / HISTORY, history)
    distributed.barrier()  # until rank 0 has deleted what is not complete
    complete = checkpoints(work)
    return complete[-1] if complete else None


def save_weights(checkpoint: Path, model: Any, optimizer: Any) -> None:
    """Writes trained weights and the optimiser's states to a new checkpoint; all ranks do this together."""
    states = {
        "model": get_model_state_dict(model, options=TRAINED),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=TRAINED),
    }
    writer = dcp.FileSystemWriter(checkpoint / SHARDS, sync_files=False)  # the unit is flushed as a whole
    with _quiet():
        dcp.save(states, storage_writer=writer)


def load_weights(checkpoint: Path, model: Any) -> None:
    """Gives `model` the trained weights of a checkpoint."""
    states = {"model": get_model_state_dict(model, options=TRAINED)}
    _read(states, checkpoint)
    set_model_state_dict(model, states["model"], options=StateDictOptions(strict=False))


def load_optimizer(checkpoint: Path, model: Any, optimizer: Any) -> None:
    """Gives `optimizer` the states of a checkpoint."""
    states = {"optimizer": get_optimizer_state_dict(model, optimizer, options=TRAINED)}
    _read(states, checkpoint)
    set_optimizer_state_dict(model, optimizer, states["optimizer"], options=TRAINED)


def _read(states: dict[str, Any], checkpoint: Path) -> None:
    """Replaces the values in `states` by those of a checkpoint, of each tensor the part that is this rank's."""
    with _quiet():
        dcp.load(states, checkpoint_id=checkpoint / SHARDS)


def _quiet() -> warnings.catch_warnings:
    """Hides the warning that one process is one process."""
    return warnings.catch_warnings(action="ignore")
