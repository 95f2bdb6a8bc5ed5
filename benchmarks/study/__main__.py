"""The controlled study of self-play objectives: runs what is missing, then writes README.md with tables and plots.

    python -m benchmarks.study [--out DIR] [--workers 2] [--fresh]

p_data is known, so KL(p_data‖p_θ) is exact. The study takes about 35 minutes on two cores. It can be killed at any time
and continues where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.study.report import Study, write_report
from benchmarks.study.results import Job, Result, compute, load
from benchmarks.study.variants import FACTORS, GROUPS, HEADLINE, cells
from benchmarks.study.workers import Task, finish, worker_pool
from benchmarks.study.world import Setting


def hotter(result: Result) -> Job:
    """The best cell of a variant at a multiple of its learning rate."""
    rate, beta = result.job.cells[result.best]
    return Job(result.job.variant, tuple((factor * rate, beta) for factor in FACTORS))


def tasks(jobs: Sequence[Job], setting: Setting, folder: Path) -> list[Task]:
    """The jobs with their files."""
    return [Task(job.variant.name, job.file(folder, setting), partial(compute, job, setting, folder)) for job in jobs]


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.study", description="The controlled study of self-play objectives."
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of README.md and results/")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    arguments = parser.parse_args()

    setting, folder = Setting(), arguments.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        for file in folder.glob("*.npz"):
            file.unlink()
    jobs = [Job(variant, tuple(cells(variant))) for group in GROUPS.values() for variant in group]
    with worker_pool(arguments.workers) as pool:
        finish(tasks(jobs, setting, folder), pool)
        results = {job.variant.name: load(job, setting, folder) for job in jobs}
        hot_jobs = [hotter(results[name]) for name in HEADLINE]
        finish(tasks(hot_jobs, setting, folder), pool)
    hot = {job.variant.name: load(job, setting, folder) for job in hot_jobs}
    write_report(Study(setting, results, hot), arguments.out)
    print(f"wrote {arguments.out / 'README.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
