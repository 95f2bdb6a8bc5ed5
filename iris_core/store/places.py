"""Places: where an experiment's folder links to the output of a stage.

    place_of(3, "train")         # "iteration-3/train"
    place_of(None, "evaluate")   # "initial/evaluate"
    COMPARISON                   # "comparison", with other loops

The initial model, before iteration 0, has the iteration None.
"""

from __future__ import annotations

import re
from pathlib import Path

INITIAL = "initial"
PREFIX = "iteration-"
COMPARISON = "comparison"


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


def of_one_recipe(place: str) -> bool:
    """Whether a place is the output of one recipe, and wrong for another of the same model and data."""
    return re.fullmatch(rf"{COMPARISON}|(?:{INITIAL}|{PREFIX}\d+)/[^/]+", place) is not None


def links_of_one_recipe(home: Path) -> list[Path]:
    """The links in an experiment's folder `home` whose places are those of one recipe."""
    links = [link for link in (home / COMPARISON, *home.glob("*/*")) if link.is_symlink()]
    return [link for link in links if of_one_recipe(link.relative_to(home).as_posix())]
