"""Places: where an experiment's folder links to the output of a stage.

    place_of(3, "train")         # "iteration-3/train"
    place_of(None, "evaluate")   # "initial/evaluate"

The initial model, before iteration 0, has the iteration None.
"""

from __future__ import annotations

from pathlib import Path

INITIAL = "initial"
PREFIX = "iteration-"


def iteration_name(iteration: int | None) -> str:
    """The folder of an iteration, and the name of its run in MLflow; None: of the initial model."""
    return INITIAL if iteration is None else f"{PREFIX}{iteration}"


def place_of(iteration: int | None, stage: str) -> str:
    """The place of the output of `stage` in an iteration; None: for the initial model."""
    return f"{iteration_name(iteration)}/{stage}"


def iterations_in(home: Path) -> list[int]:
    """The iterations that have a folder in an experiment's folder `home`, in order, finished or not."""
    numbers = [path.name.removeprefix(PREFIX) for path in home.glob(f"{PREFIX}*")]
    return sorted(int(number) for number in numbers if number.isdigit())
