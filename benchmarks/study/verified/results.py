"""Jobs of panel c and the files with their results."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.study import language, network, selfplay
from benchmarks.study.results import Floats, save
from benchmarks.study.selfplay import Runs
from benchmarks.study.verified import exact, losses, measures, play, regimes
from benchmarks.study.verified.methods import Method
from benchmarks.study.verified.regimes import Regime, build_world
from iris_core.objectives.losses import Parameters, Rewards
from iris_core.objectives.normalizer import Normalizer

CODE = [inspect.getsource(module) for module in (language, network, selfplay, exact, losses, measures, play, regimes)]


@dataclass(frozen=True)
class Job:
    """A method on all seeds of a regime in some cells (learning rate, β or ρ)."""

    method: Method
    regime: Regime
    cells: tuple[tuple[float, float], ...]

    def file(self, folder: Path) -> Path:
        """The file of its result; the name has a digest of all that decides it."""
        content = json.dumps([asdict(self), CODE, _coefficients(self.method)], sort_keys=True)
        return folder / f"c-{hashlib.sha256(content.encode()).hexdigest()[:20]}.npz"


def _coefficients(method: Method) -> list[float]:
    """The gradient of the method's loss on a fixed batch of rewards; it changes when the product's losses do."""
    annotated, *samples = torch.linspace(-4, 4, 30).sin().mul(2).view(5, 1, 6).unbind()
    right = (torch.arange(24).view(1, 6, 4) % 3 > 0).float()
    weights = losses.balanced_weights(right, torch.ones_like(annotated), torch.tensor(3.0), "smoothed", 1.0)
    together = Rewards(annotated, torch.stack(samples, -1), weights=weights)
    rewards = together if method.verified else Rewards(annotated, samples[0])
    leaves = [side.requires_grad_() for side in rewards[:2]]
    normalizer = Normalizer("anchored", 1.5)
    if method.objective != "sft":
        normalizer.update(rewards)
    parameters = replace(Parameters.of(method.settings, 1.5), log_normalizers=normalizer.log_values(annotated))
    objective = losses.OBJECTIVES_OF_STUDY[method.verified][method.objective]
    gradients = torch.autograd.grad(objective.loss(rewards, parameters).sum(), leaves, materialize_grads=True)
    return [round(value, 3) for gradient in gradients for value in gradient.flatten().tolist()]


@dataclass(frozen=True)
class Result:
    """The measures of a job.

    Attributes:
        job: the method and its cells.
        measures: of `measures.measure`, each of shape [cells, seeds, iterations + 1, …].
        seconds: of computing on one core.
    """

    job: Job
    measures: dict[str, Floats]
    seconds: float


def compute(job: Job, folder: Path) -> None:
    """Runs a job and writes its file."""
    start = time.perf_counter()
    seeds = job.regime.seeds
    found = play.play(build_world(job.regime), job.method, Runs.of(list(job.cells), seeds))
    save(job.file(folder), found, (len(job.cells), seeds), time.perf_counter() - start)


def load(job: Job, folder: Path) -> Result:
    """The result of a computed job."""
    with np.load(job.file(folder)) as arrays:
        found = {name: arrays[name].astype(np.float64) for name in arrays.files}
    return Result(job, found, float(found.pop("seconds")))
