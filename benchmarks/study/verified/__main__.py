"""Panel c of the study: runs what is missing, then writes README.md with tables and plots.

    python -m benchmarks.study.verified [--out DIR] [--workers 2] [--fresh]

It can be killed at any time and continues where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.study.verified.methods import groups
from benchmarks.study.verified.regimes import COMP, H8, Regime
from benchmarks.study.verified.report import Panel, write_report
from benchmarks.study.verified.results import Job, Result, compute, load
from benchmarks.study.verified.selection import LADDER, best_likelihood, choose
from benchmarks.study.workers import Task, finish, worker_pool

CONFIRMING_SEEDS = 8


def exploring(regime: Regime) -> list[Job]:
    """Every method in every cell of its grid."""
    return [Job(method, regime, tuple(method.cells)) for methods in groups(regime).values() for method in methods]


def confirming(explored: Iterable[Result]) -> list[Job]:
    """Every method on fresh seeds in the cells that it chose."""
    results = list(explored)
    best = best_likelihood(result for result in results if result.job.method.objective == "sft")
    jobs = []
    for result in results:
        chosen = {choose(result, budget, best).cell for budget in LADDER}
        fresh = replace(result.job.regime, seeds=CONFIRMING_SEEDS, draw=result.job.regime.draw + 1)
        jobs.append(Job(result.job.method, fresh, tuple(sorted(chosen))))
    return jobs


def tasks(jobs: Iterable[Job], folder: Path) -> list[Task]:
    """The jobs with their files."""
    return [
        Task(f"{job.regime.name}: {job.method.name}", job.file(folder), partial(compute, job, folder)) for job in jobs
    ]


def main() -> None:
    """Runs panel c."""
    parser = argparse.ArgumentParser("python -m benchmarks.study.verified", description="Panel c of the study.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of README.md and results/")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    arguments = parser.parse_args()

    folder = arguments.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        for file in folder.glob("*.npz"):
            file.unlink()
    panels = []
    with worker_pool(arguments.workers) as pool:
        for regime in (H8, COMP):
            first = exploring(regime)
            finish(tasks(first, folder), pool)
            explored = [load(job, folder) for job in first]
            second = confirming(explored)
            finish(tasks(second, folder), pool)
            panels.append(Panel(regime, explored, [load(job, folder) for job in second]))
    write_report(panels, arguments.out)
    print(f"wrote {arguments.out / 'README.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
