"""Where the benchmarks' data lies: in a mirror, in the embedded miniature, or on the hub."""

from __future__ import annotations

from pathlib import Path

from iris_core.common.errors import EvaluationError
from iris_core.evaluation import miniature


def benchmark_folder(data_dir: str | None) -> Path | None:
    """The folder with the benchmarks' data; None: they come from the hub.

    Raises:
        EvaluationError: the folder does not exist.
    """
    if data_dir is None:
        return None
    folder = miniature.FOLDER if data_dir == "miniature" else Path(data_dir).expanduser().absolute()
    if not folder.is_dir():
        raise EvaluationError(
            f"evaluation.data_dir: there is no folder {folder}: make a mirror with `python -m iris_core.mirror --out DIR`, "
            "or use `miniature`"
        )
    return folder
