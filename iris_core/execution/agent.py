"""Starts a machine's ranks of a stage, and ends when they have ended: torchrun's agent.

    python -m iris_core.execution.agent --standalone --nproc-per-node 2 -m iris_core.train --spec spec.json --out DIR

It takes torchrun's arguments and does what torchrun does, but a rank that is killed becomes an error which names it,
and the exit code is that of the rank that failed.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from iris_core.common.errors import StageFailed
from iris_core.execution.failure import report
from iris_core.execution.supervision import how_ended

TOGETHER_S = 5  # torchrun kills those that do not end within 30 s after another has failed


def main() -> NoReturn:
    """The command line."""
    try:
        run.run(run.parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        sys.exit(exit_code({rank: (failure.exitcode, failure.timestamp) for rank, failure in error.failures.items()}))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)


def exit_code(ended: dict[int, tuple[int, int]]) -> int:
    """The exit code for ranks that have failed. One that was killed is reported; others have reported their errors.

    Args:
        ended: exit code and time in seconds by rank, in the order in which torchrun noticed them. It has sent SIGTERM
            to all others after the first.
    """
    first, (code, at) = next(iter(ended.items()))
    killed = [
        rank
        for rank, (number, time) in ended.items()
        if number < 0 and (rank == first or (number != -signal.SIGTERM and time - at < TOGETHER_S))
    ]
    if not killed:
        return code
    how = how_ended(ended[killed[0]][0])
    return report(StageFailed(f"rank {killed[0]} {how}: run again to resume"))


if __name__ == "__main__":
    main()
