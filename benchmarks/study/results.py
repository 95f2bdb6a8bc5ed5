"""Jobs of the study, the files with their results, and statistics over seeds."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.study import language, losses, network, selfplay, world
from benchmarks.study.losses import STUDY_OBJECTIVES
from benchmarks.study.selfplay import Measures, Runs, Variant, play
from benchmarks.study.world import Setting, build_world
from iris_core.config import ObjectivePart
from iris_core.objectives.losses import Parameters, Rewards, gradient_coefficients
from iris_core.objectives.normalizer import Normalizer

Floats = NDArray[np.float64]
CODE = [Path(str(source.__file__)).read_text("utf-8") for source in (language, losses, network, selfplay, world)]


@dataclass(frozen=True)
class Job:
    """One variant on all seeds in some cells (learning rate, β)."""

    variant: Variant
    cells: tuple[tuple[float, float], ...]

    def file(self, folder: Path, setting: Setting) -> Path:
        """The file of its result; the name has a digest of its settings, the study's code and the losses' values."""
        content = json.dumps(
            {
                "variant": {**asdict(self.variant), "schedule": self.variant.schedule.model_dump()},
                "cells": self.cells,
                "setting": asdict(setting),
                "code": CODE,
                "gradient_coefficients": _coefficients(self.variant),
            },
            sort_keys=True,
        )
        return folder / f"{hashlib.sha256(content.encode()).hexdigest()[:20]}.npz"


def _coefficients(variant: Variant) -> list[float]:
    """Gradient coefficients of the variant's loss on a fixed batch of rewards; they change when the loss does."""
    annotated, synthetic, initial = torch.linspace(-4, 4, 24).sin().mul(2).view(3, 8).unbind()
    rewards = Rewards(annotated, synthetic, initial)
    normalizer = Normalizer(variant.normalizer, variant.schedule.max_order)
    normalizer.update(rewards)
    parameters = replace(
        Parameters.of(ObjectivePart(), torch.tensor([variant.schedule.max_order])),
        log_normalizers=normalizer.log_values(annotated),
        clip=variant.clip,
        likelihood_weight=variant.likelihood_weight,
    )
    up, down = gradient_coefficients(STUDY_OBJECTIVES[variant.objective], rewards, parameters)
    return [round(value, 3) for value in torch.cat([up, down]).tolist()]


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval (Student's t)."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Floats) -> Interval:
        """The interval of the mean of independent values."""
        mean = float(values.mean())
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        return Interval(mean, mean - half, mean + half)

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference with this interval is one."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Result:
    """The measures of a job.

    Attributes:
        job: the variant and its cells.
        measures: of `selfplay.play`, each of shape [cells, seeds, iterations (+ 1)].
        seconds: of computing on one core.
    """

    job: Job
    measures: dict[str, Floats]
    seconds: float

    @property
    def best(self) -> int:
        """The cell with the largest mean validation likelihood after the last iteration."""
        return int(_finite(self.measures["validation"][:, :, -1]).mean(axis=1).argmax())

    def at_best(self, measure: str) -> Floats:
        """A measure in the best cell, shape [seeds, iterations (+ 1)]."""
        return self.measures[measure][self.best]

    @property
    def final(self) -> Floats:
        """KL(p_data‖p_θ) after the last iteration, in the best cell, shape [seeds]."""
        return self.at_best("forward")[:, -1]

    @property
    def chosen(self) -> Floats:
        """KL(p_data‖p_θ) of the iteration with each seed's largest validation likelihood, in the best cell, [seeds]."""
        iterations = _finite(self.at_best("validation")).argmax(axis=1)
        return self.at_best("forward")[np.arange(len(iterations)), iterations]

    @property
    def better_share(self) -> float:
        """Share of cells × seeds that end with a smaller KL than they start with."""
        forward = self.measures["forward"]
        return float((forward[..., -1] < forward[..., 0]).mean())

    def gain_share(self, gain: float) -> float:
        """Share of cells × seeds that lower the KL by at least `gain` nats."""
        forward = self.measures["forward"]
        return float((forward[..., 0] - forward[..., -1] >= gain).mean())


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, -np.inf)


def compute(job: Job, setting: Setting, folder: Path) -> None:
    """Runs a job and writes its file."""
    start = time.perf_counter()
    measures = play(build_world(setting), job.variant, Runs.of(list(job.cells), setting.seeds))
    save(job.file(folder, setting), measures, (len(job.cells), setting.seeds), time.perf_counter() - start)


def save(file: Path, measures: Measures, runs: tuple[int, int], seconds: float) -> None:
    """Writes measures, each of shape [runs, …], atomically, with `runs` = (cells, seeds) as their leading axes."""
    arrays = {name: value.unflatten(0, runs).numpy().astype(np.float32) for name, value in measures.items()}
    partial = file.with_suffix(f".{os.getpid()}")
    with partial.open("wb") as stream:
        np.savez_compressed(stream, seconds=np.float32(seconds), **arrays)
    partial.replace(file)


def load(job: Job, setting: Setting, folder: Path) -> Result:
    """The result of a computed job."""
    with np.load(job.file(folder, setting)) as arrays:
        measures = {name: arrays[name].astype(np.float64) for name in arrays.files}
    return Result(job, measures, float(measures.pop("seconds")))
