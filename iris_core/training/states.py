"""Weights and optimizer states in a checkpoint, in the format of torch.distributed.checkpoint.

Each rank writes its part, and any number of ranks can go on from it.
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

SHARDS = "shards"  # their folder, in a checkpoint
TRAINED = StateDictOptions(ignore_frozen_params=True)


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
