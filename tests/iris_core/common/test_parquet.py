"""Parquet files are complete or what they were before."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iris_core.common.parquet import write_parquet

pytestmark = pytest.mark.unit


def test_a_table_is_read_back(tmp_path):
    table = pa.table({"x": [1, 2], "text": ["a", None]})
    write_parquet(tmp_path / "table.parquet", table)
    assert pq.read_table(tmp_path / "table.parquet") == table


def test_a_table_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    path, old = tmp_path / "table.parquet", pa.table({"x": [1]})
    write_parquet(path, old)
    unwritable = pa.table({"x": pa.array([pa.MonthDayNano([1, 2, 3])])})  # Parquet has no such type
    with pytest.raises(pa.ArrowNotImplementedError):
        write_parquet(path, unwritable)
    assert pq.read_table(path) == old
    assert list(tmp_path.iterdir()) == [path]
