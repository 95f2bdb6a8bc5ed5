"""Units of work: whole or redone, whatever happened to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iris_core.common import files
from iris_core.common.files import make_folder, read_sealed, remove, seal, write_atomic
from iris_core.store.units import Units, keep_only
from tests.iris_core.damage import DAMAGES, damage

pytestmark = pytest.mark.unit


def write_file(place: Path) -> None:
    place.write_text("a unit's content")


def write_folder(place: Path) -> None:
    (place / "inner").mkdir(parents=True)
    (place / "state.json").write_text("{}")
    (place / "inner" / "weights").write_text("a unit's content")


WRITERS = {"shard.parquet": write_file, "checkpoint-3": write_folder}


def make(units: Units, path: Path) -> None:
    make_folder(path.parent)
    with units.writing(path) as place:
        WRITERS[path.name](place)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_unit_is_named_removed_and_made_again(tmp_path, caplog, name, kind):
    units, path = Units(tmp_path, "key"), tmp_path / "within" / name
    make(units, path)
    assert units.holds(path)
    damage(path, kind)
    assert not units.holds(path)
    assert not os.path.lexists(path)
    named = [f"{path} is damaged: it is redone"]
    assert caplog.messages == ([] if kind in ("missing", "dangling") else named)
    make(units, path)
    assert units.holds(path)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_unit_whose_digest_is_damaged_is_made_again(tmp_path, kind):
    units, path = Units(tmp_path, "key"), tmp_path / "shard.parquet"
    make(units, path)
    damage(tmp_path / ".digests" / path.name, kind)
    assert not units.holds(path)
    make(units, path)
    assert units.holds(path)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["folder", "file", "dangling"])
def test_what_stands_in_the_way_of_a_unit_goes(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "folder":
        (path / "within").mkdir(parents=True)
    elif kind == "file":
        path.write_text("in the way")
    else:
        path.symlink_to("nowhere")
    make(Units(tmp_path, "key"), path)
    assert Units(tmp_path, "key").holds(path)
    assert not path.is_symlink()


def test_a_unit_made_for_another_spec_does_not_count(tmp_path):
    path = tmp_path / "shard.parquet"
    make(Units(tmp_path, "key"), path)
    assert not Units(tmp_path, "another key").holds(path)


def test_a_folder_with_one_file_more_is_not_whole(tmp_path):
    units, path = Units(tmp_path, "key"), tmp_path / "checkpoint-3"
    make(units, path)
    (path / "more").write_text("")
    assert not units.holds(path)


def test_a_kill_costs_the_unit_that_was_being_written(tmp_path, caplog):
    """Before its content is there, before its digest is, and between the two."""
    units, path = Units(tmp_path, "key"), tmp_path / "shard.parquet"

    def dies() -> None:
        with units.writing(path) as place:
            place.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dies()
    assert not units.holds(path)
    make(units, path)
    path.unlink()  # the digest is there, its unit is not
    assert not units.holds(path)
    assert not caplog.messages


def test_a_unit_and_its_folder_are_on_the_disk_before_and_after_it_gets_its_name(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync
    path = tmp_path / "checkpoint-3"

    def note(descriptor):
        flushed.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    make(Units(tmp_path, "key"), path)
    new = str(tmp_path / ".new" / "checkpoint-3")
    inner = ("", "/inner", "/inner/weights", "/state.json")
    assert {(new + name, False) for name in inner} <= set(flushed)
    assert (str(tmp_path / ".digests"), False) in flushed
    assert flushed[-1] == (str(tmp_path), True)


def test_what_does_not_belong_to_a_folder_of_units_goes(tmp_path, caplog):
    for name in ("shard-0", "shard-1", ".shard-1.123"):
        (tmp_path / name).write_text("")
    keep_only(tmp_path, {"shard-0", "shard-2"})
    assert [path.name for path in tmp_path.iterdir()] == ["shard-0"]
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_sealed_file_is_read_whole_or_not_at_all(tmp_path, kind):
    file, content = tmp_path / "experiment.json", {"model": "ä", "loss": 0.1, "list": [1, None]}
    write_atomic(file, seal(content))
    assert read_sealed(file) == content
    damage(file, kind)
    assert read_sealed(file) is None


@pytest.mark.parametrize("text", ["null", "[]", "3", '"digest"', "{", "\0\0", "[" * 100_000])
def test_what_was_never_sealed_is_not_read(tmp_path, text):
    (tmp_path / "file").write_text(text)
    assert read_sealed(tmp_path / "file") is None


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    code = "import sys; from pathlib import Path; from iris_core.common.files import replacing\n"
    code += "with replacing(Path(sys.argv[1])) as place: place.write_text('half'); import os; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "file"], check=False)
    (left,) = tmp_path.iterdir()
    alive = tmp_path / f".file.{os.getppid()}"
    alive.write_text("of a writer that lives")
    write_atomic(tmp_path / "file", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", alive.name}
    assert left.name.startswith(".file.")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_atomic(tmp_path / "file", "old")

    def fails() -> None:
        with files.replacing(tmp_path / "file") as place:
            place.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "within").write_text("")
    for name in ("file", "link", "kept"):
        make_folder(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["within"]
    remove(tmp_path / "file" / "of nothing")
