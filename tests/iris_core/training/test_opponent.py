"""Stored log-probs of the opponent are used by trainings of the same numerics alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iris_core.store.units import Units
from iris_core.training.opponent import NUMERICS, OPPONENT, _is_stored

pytestmark = pytest.mark.unit


def stored(folder: Path, metadata: dict[bytes, bytes] | None) -> Units:
    units, table = Units(folder, "key"), pa.table({"cut": [1.0]}).replace_schema_metadata(metadata)
    with units.writing(folder / OPPONENT) as place:
        pq.write_table(table, place)
    return units


@pytest.mark.parametrize(("metadata", "numerics"), [(None, "plain"), ({NUMERICS: b"sharded"}, "sharded")])
def test_log_probs_of_the_same_numerics_stay(
    tmp_path: Path, metadata: dict[bytes, bytes] | None, numerics: str
) -> None:
    assert _is_stored(tmp_path / OPPONENT, stored(tmp_path, metadata), numerics)
    assert (tmp_path / OPPONENT).exists()


@pytest.mark.parametrize(("metadata", "numerics"), [(None, "sharded"), ({NUMERICS: b"sharded"}, "plain")])
def test_log_probs_of_other_numerics_are_computed_again(
    tmp_path: Path, metadata: dict[bytes, bytes] | None, numerics: str
) -> None:
    assert not _is_stored(tmp_path / OPPONENT, stored(tmp_path, metadata), numerics)
    assert not (tmp_path / OPPONENT).exists()


def test_without_log_probs_there_are_none(tmp_path: Path) -> None:
    assert not _is_stored(tmp_path / OPPONENT, Units(tmp_path, "key"), "plain")
