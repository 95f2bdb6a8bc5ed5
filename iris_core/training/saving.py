"""Writes checkpoints on a thread: where states are on a GPU, training goes on as soon as they are copied.

    with Saver(units, work, overlaps(device)) as saver:
        saver.save(step, model, optimizer, texts)      # waits for the checkpoint before
        saver.check()                                  # raises what went wrong meanwhile

A checkpoint is a unit of the stage: it has its name when all ranks have written their parts.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iris_core.common.files import remove
from iris_core.execution import distributed, exchange
from iris_core.store.units import Units
from iris_core.training.checkpoints import KEPT_CHECKPOINTS, checkpoints, path_of
from iris_core.training.states import States, states_of, write_states


def overlaps(device: torch.device) -> bool:
    """Whether training goes on while a checkpoint is written: not where the copy takes memory that training needs."""
    return device.type != "cpu"


class Saver:
    """Writes checkpoints, one at a time.

    Args:
        units: of the stage.
        work: the folder of the checkpoints.
        overlapping: whether training goes on meanwhile.
    """

    def __init__(self, units: Units, work: Path, overlapping: bool):
        self.units, self.work, self.overlapping = units, work, overlapping
        self.group = distributed.new_group() if overlapping else None  # training exchanges tensors at the same time
        self.thread = ThreadPoolExecutor(1)
        self.written: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the last checkpoint, and raises what went wrong with it unless something else did."""
        self.thread.shutdown()
        if kind is None:
            self.check()

    def save(self, step: int, model: Any, optimizer: torch.optim.Optimizer, texts: dict[str, str]) -> None:
        """Writes the checkpoint of `step`, then removes the oldest one; all ranks call this.

        Args:
            step: number of optimizer steps so far.
            model: its trained weights are saved.
            optimizer: its states are saved.
            texts: more files by name, which rank 0 writes.
        """
        if self.written:
            self.written.result()  # one copy at a time
        states = states_of(model, optimizer, copied=self.overlapping)
        self.written = self.thread.submit(self._write, path_of(self.work, step), states, texts)
        if not self.overlapping:
            self.written.result()

    def check(self) -> None:
        """Raises what went wrong with a checkpoint since."""
        if self.written and self.written.done():
            self.written.result()

    def _write(self, path: Path, states: States, texts: dict[str, str]) -> None:
        place = self.units.place(path)
        if distributed.rank() == 0:
            remove(place)
        exchange.spread(self.units.folder, place, self.group)
        write_states(place, states)
        exchange.gather(self.units.folder, place, self.group)
        distributed.together(partial(self._complete, path, texts), self.group)

    def _complete(self, path: Path, texts: dict[str, str]) -> None:
        """On rank 0, which digests what all have written."""
        if distributed.rank():
            return
        place = self.units.place(path)
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
        self.units.put(place, path)
        for old in checkpoints(self.work)[:-KEPT_CHECKPOINTS]:
            self.units.remove(old)
