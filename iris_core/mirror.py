"""Downloads the benchmarks' data sets, for machines without a network.

    python -m iris_core.mirror --out DIR [--benchmarks gsm8k mmlu]

Run it on a machine with a network, copy DIR, and set `evaluation.data_dir` to the copy. GPQA is gated: first accept its
terms on the hub and log in (`hf auth login`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from iris_core.common.errors import IrisError
from iris_core.evaluation.benchmarks import BENCHMARKS
from iris_core.evaluation.mirror import mirror


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m iris_core.mirror", description="Mirror the benchmarks' data sets.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the mirror")
    names = list(BENCHMARKS)
    parser.add_argument("--benchmarks", nargs="+", choices=names, default=names, metavar="NAME")
    arguments = parser.parse_args()
    try:
        mirror(arguments.out.absolute(), arguments.benchmarks)
    except IrisError as error:
        sys.exit(f"error: {error}")
    print(f"the mirror is complete: set evaluation.data_dir to {arguments.out.absolute()}")


if __name__ == "__main__":
    main()
