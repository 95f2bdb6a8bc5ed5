"""Random faults in whole loops on a tiny model: each loop must end as the loop without faults does.

    python -m tests.faults --kills 100 --minutes 60 --seed 0
    python -m tests.faults --kills 10 --seed 0 --only 3      # the 10 faults of loop 3 again

After each fault the same command is started again until the loop is complete. Then the digests of all stages, MLflow's
runs, points, versions and aliases, Prefect's states, files and processes are compared with those of a loop without
faults. The seed alone decides which fault strikes at which stage, and how far into it, loop by loop. What a stage does
at that moment depends on the machine.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.campaign import FAULTS_A_LOOP, Campaign, Result


def main() -> None:
    """Runs a campaign; exits with 1 if anything was lost, duplicated or left behind."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="how many faults")
    parser.add_argument("--minutes", type=float, default=60, help="no fault begins later")
    parser.add_argument("--seed", type=int, default=0, help="of all faults")
    parser.add_argument("--only", type=int, metavar="LOOP", help="this loop alone")
    arguments = parser.parse_args()
    console, begun = Console(soft_wrap=True, highlight=False, markup=False), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="iris-faults-"))

    def echo(line: str) -> None:
        console.print(f"{time.monotonic() - begun:7.1f}  {line}")

    echo(f"seed {arguments.seed}, in {folder}")
    campaign = Campaign(folder, arguments.seed, echo)
    until = begun + 60 * arguments.minutes
    results = run(campaign, arguments.kills, until, arguments.only)
    console.print(table(results))
    for number, result in results.items():
        for problem in result.problems:
            console.print(f"loop {number}: {problem}")
    if any(result.problems for result in results.values()):
        sys.exit(1)
    shutil.rmtree(folder)


def run(campaign: Campaign, kills: int, until: float, only: int | None) -> dict[int, Result]:
    """Runs loops until there were `kills` faults or `until` has passed; returns the results by number of the loop."""
    reference, results = campaign.reference(), {}
    number, left = only or 0, kills
    while left > 0 and time.monotonic() < until:
        results[number] = campaign.disturbed(number, min(left, FAULTS_A_LOOP), reference, until)
        left -= results[number].faults
        number += 1
        if only is not None:
            break
    return results


def table(results: dict[int, Result]) -> Table:
    """A row for each loop."""
    found = Table()
    for name in ("loop", "run as", "faults", "starts", "minutes", "differences"):
        found.add_column(name)
    for number, result in results.items():
        numbers = (number, result.setup.name, result.faults, result.starts)
        minutes = f"{result.seconds / 60:.1f}"
        found.add_row(*map(str, numbers), minutes, str(len(result.problems) or "none"))
    faults = sum(result.faults for result in results.values())
    found.add_row("", "", str(faults), "", "", "")
    return found


if __name__ == "__main__":
    main()
