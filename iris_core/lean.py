"""Spares a process libraries that others import for no other reason than that they are installed.

transformers imports scikit-learn, SciPy, pandas and datasets for features that training here has no use for. Without them a stage
starts sooner and is smaller.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

UNUSED_IN_TRAINING = ("sklearn", "scipy", "pandas", "datasets")


def leave_out(names: Iterable[str]) -> None:
    """Makes libraries appear not to be installed, in this process, unless they have been imported already.

    Args:
        names: of their top-level modules.
    """
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
