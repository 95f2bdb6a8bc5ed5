"""Which checkpoint training goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_core.store.units import Units
from iris_core.training.checkpoints import HISTORY, checkpoints, newest_checkpoint

pytestmark = pytest.mark.unit


def write(units: Units, work: Path, step: int, file: str) -> None:
    with units.writing(work / f"checkpoint-{step}") as place:
        place.mkdir()
        (place / file).write_bytes(b"states")
        (place / HISTORY).write_text(f"{step} steps\n")


def test_one_of_an_earlier_version_is_removed(tmp_path, caplog):
    units, work = Units(tmp_path, "key"), tmp_path / "work"
    write(units, work, 2, "weights-00000.safetensors")
    write(units, work, 4, "__0_0.distcp")
    assert newest_checkpoint(work, units) == work / "checkpoint-2"
    assert checkpoints(work) == [work / "checkpoint-2"]
    assert (work / HISTORY).read_text() == "2 steps\n"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "checkpoint-4 holds no safetensors, as earlier versions wrote it: it is redone" in line


def test_without_a_whole_one_training_begins(tmp_path):
    units, work = Units(tmp_path, "key"), tmp_path / "work"
    write(units, work, 2, "__0_0.distcp")
    write(units, work, 4, "weights-00000.safetensors")
    (work / "checkpoint-4" / HISTORY).unlink()
    assert newest_checkpoint(work, units) is None
    assert (work / HISTORY).read_text() == ""
