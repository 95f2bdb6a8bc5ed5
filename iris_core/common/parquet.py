"""Parquet files that are complete or absent: every stage writes its tables with `write_parquet`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.common.files import replacing


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes `table` so that `path` holds either all of it or what it held before."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
