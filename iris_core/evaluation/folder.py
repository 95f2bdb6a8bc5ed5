"""The folder with the benchmarks' data: a mirror or the embedded miniature. Without one, data comes from the hub."""

from __future__ import annotations

from pathlib import Path

from iris_core.common.errors import EvaluationError
from iris_core.evaluation import miniature
from iris_core.evaluation.benchmarks import LABEL_FILE
from iris_core.store import Artifact


def benchmark_folder(data_dir: str | None) -> Path | None:
    """The folder with the benchmarks' data; None: it comes from the hub.

    Raises:
        EvaluationError: the folder does not exist.
    """
    if data_dir is None:
        return None
    folder = miniature.FOLDER if data_dir == "miniature" else Path(data_dir).expanduser().absolute()
    if not folder.is_dir():
        raise EvaluationError(
            f"evaluation.data_dir: there is no folder {folder}: make a mirror with "
            "`python -m iris_core.mirror --out DIR`, or use `miniature`"
        )
    return folder


def verify(data: Artifact | None) -> None:
    """Checks that the folder holds what its digest says.

    Raises:
        EvaluationError: it is missing, or has changed.
    """
    if data is None:
        return
    if not data.path.is_dir():
        raise EvaluationError(
            f"evaluation.data_dir: there is no folder {data.path}: make a mirror where there is a network, with "
            f"`python -m iris_core.mirror --out {data.path}`"
        )
    if Artifact.of(data.path).digest != data.digest:
        raise EvaluationError(f"evaluation.data_dir: {data.path} has changed since this spec was made: run again")


def label(data: Artifact | None) -> str | None:
    """The label that scores on `data` must carry ("miniature"); None: they need none."""
    file = data.path / LABEL_FILE if data else None
    return file.read_text(encoding="utf-8").strip() if file and file.is_file() else None
