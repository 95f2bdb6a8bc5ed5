"""The stage store: keys, manifests, reuse, resume, and its refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import ClassVar

import pytest

from iris_core.common.errors import StoreError
from iris_core.common.files import read_sealed, seal
from iris_core.store import (
    Artifact,
    Execution,
    Manifest,
    Metrics,
    Outcome,
    Spec,
    Store,
    completed,
    read_manifest,
    run_stage,
    stages,
    tidy,
)
from tests.iris_core.damage import DAMAGES, damage

pytestmark = pytest.mark.unit


class CountSpec(Spec):
    stage: ClassVar[str] = "count"
    text: Artifact
    times: int = 1


class CountMetrics(Metrics):
    words: int


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "text").write_text("one two")
    return CountSpec(text=Artifact.of(tmp_path / "text"))


def work(spec: CountSpec, out: Path) -> Outcome:
    words = len(spec.text.path.read_text().split()) * spec.times
    (out / "words.json").write_text(json.dumps(words))
    (out / "work").mkdir(exist_ok=True)
    (out / "work" / "scratch").write_text("x")
    return Outcome(outputs={"words": out / "words.json"}, metrics=CountMetrics(words=words))


def never(spec: CountSpec, out: Path) -> Outcome:
    raise AssertionError("must be reused")


def test_the_key_is_of_content_not_of_places(spec, tmp_path):
    shutil.copy(tmp_path / "text", tmp_path / "other")
    moved = CountSpec(text=Artifact.of(tmp_path / "other"), execution=Execution(processes=2))
    assert moved.key() == spec.key()
    assert spec.model_copy(update={"times": 2}).key() != spec.key()
    assert spec.model_copy(update={"versions": {"torch": "2"}}).key() != spec.key()
    (tmp_path / "other").write_text("changed")
    assert CountSpec(text=Artifact.of(tmp_path / "other")).key() != spec.key()


def test_how_a_stage_ran_earlier_does_not_matter(spec, tmp_path):
    """A store of an earlier version, where `execution` held any mapping: its output is read, and reused."""
    run_stage(spec, tmp_path / "out", work)
    manifest = tmp_path / "out" / "manifest.json"
    content = read_sealed(manifest)
    content["spec"]["execution"] = {"threads": 2, "tokens_per_batch": 100}
    manifest.write_text(seal(content))
    assert read_manifest(tmp_path / "out").spec["execution"]["threads"] == 2
    assert run_stage(spec, tmp_path / "out", never).reused


def test_runs_once_and_is_reused(spec, tmp_path):
    first = run_stage(spec, tmp_path / "out", work)
    assert first.metrics["words"] == 2
    assert not first.reused
    assert set(first.files) == {"spec.json", "words.json"}
    assert not (tmp_path / "out" / "work").exists()
    again = run_stage(spec, tmp_path / "out", never)
    assert again.reused
    assert again.artifact("words").path.read_text() == "2"


def test_a_file_that_changed_is_made_again(spec, tmp_path):
    run_stage(spec, tmp_path / "out", work)
    (tmp_path / "out" / "words.json").write_text("9")
    assert completed(tmp_path / "out", spec) is None
    again = run_stage(spec, tmp_path / "out", work)
    assert again.artifact("words").path.read_text() == "2"


class LoggedSpec(CountSpec):
    """Its work is also logged beside the folder."""

    def kept_elsewhere(self, manifest: Manifest) -> bool:
        return (manifest.folder.parent / "log").exists()


def test_what_was_lost_elsewhere_is_made_again(spec, tmp_path):
    logged, tries = LoggedSpec(**spec.model_dump()), []

    def log_too(spec, out):
        tries.append(1)
        (tmp_path / "log").write_text("")
        return Outcome(outputs={})

    for _ in range(2):
        run_stage(logged, tmp_path / "out", log_too)
    assert len(tries) == 1
    (tmp_path / "log").unlink()
    assert completed(tmp_path / "out", logged) is None
    run_stage(logged, tmp_path / "out", log_too)
    assert len(tries) == 2


def test_unfinished_work_is_resumed_in_place(spec, tmp_path):
    def dies(spec, out):
        (out / "half").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(spec, tmp_path / "out", dies)
    assert read_manifest(tmp_path / "out") is None
    manifest = run_stage(spec, tmp_path / "out", work)
    assert "half" in manifest.files


def test_a_folder_in_use_is_waited_for_while_its_run_lives(spec, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(stages, "NOTIFY_EVERY_S", 0.2)
    (tmp_path / "out").mkdir()
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "out" / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        made = []
        waiting = threading.Thread(target=lambda: made.append(run_stage(spec, tmp_path / "out", work)))
        waiting.start()
        while caplog.text.count("out is in use by another run: waiting for it to end") < 3:
            assert waiting.is_alive()
            time.sleep(0.05)
        assert not made
        holder.kill()
        waiting.join()
    assert made[0].metrics["words"] == 2
    assert run_stage(spec, tmp_path / "out", never).reused


def test_another_specs_unfinished_work_is_refused(spec, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_stage(spec, tmp_path / "out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(StoreError, match="unfinished work of another spec"):
        run_stage(spec.model_copy(update={"times": 3}), tmp_path / "out", work)


def test_a_full_disk_is_named_before_work_begins(spec, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(StoreError, match=r"has 0.0 GB free, 1.1 GB are needed: free some space"):
        run_stage(spec, tmp_path / "out", never)


@pytest.mark.parametrize("kind", ["file", "dead link"])
@pytest.mark.parametrize("name", ["mine", "objects"])
def test_a_store_without_its_folders_is_refused(tmp_path, name, kind):
    place = tmp_path / name
    place.symlink_to("no-disk") if kind == "dead link" else place.write_text("a file")
    with pytest.raises(StoreError, match=f"store: cannot write .*/{name} .File exists.: set `store`"):
        Store(tmp_path, "mine").check()


def test_a_store_of_another_experiment_is_refused(tmp_path):
    Store(tmp_path, "mine").claim({"model": "a", "data": "b"})
    Store(tmp_path, "mine").claim({"model": "a", "data": "b"})
    with pytest.raises(
        StoreError,
        match=r"holds another experiment \(model was a, now c\): give this one another `name`",
    ):
        Store(tmp_path, "mine").claim({"model": "c", "data": "b"})
    Store(tmp_path, "other").claim({"model": "c", "data": "b"})


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_identity_blocks_nobody_and_shows_nothing_of_another(spec, tmp_path, caplog, kind):
    store = Store(tmp_path / "store", "mine")
    store.claim({"model": "a", "data": "b"})
    run_stage(spec, store.folder(spec), work)
    for place in ("prepare", "iteration-0/count"):
        store.link(place, store.folder(spec))
    damage(store.home / "experiment.json", kind)
    store.claim({"model": "c", "data": "b"})
    named = f"{store.home / 'experiment.json'} is damaged: it is written again with this run's model and data"
    assert caplog.messages == ([] if kind == "missing" else [named])
    assert store.manifest("prepare") is not None
    assert (store.manifest("iteration-0/count") is None) == (kind != "missing")
    with pytest.raises(StoreError, match="model was c, now a"):
        store.claim({"model": "a", "data": "b"})


@pytest.mark.parametrize("name", [".lock", "spec.json", "manifest.json", ".digests", ".new"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_of_a_stage_blocks_nobody(spec, tmp_path, name, kind):
    out = tmp_path / "out"
    run_stage(spec, out, work)
    (out / ".new").mkdir()
    (out / ".new" / "half").write_text("a unit")
    damage(out / name, kind)
    assert run_stage(spec, out, work).artifact("words").path.read_text() == "2"
    assert run_stage(spec, out, never).reused
    lasting = {
        ".lock",
        "spec.json",
        "words.json",
        "manifest.json",
    }  # nobody asks for a finished stage's `.digests`
    assert {path.name for path in out.iterdir()} - {".digests"} == lasting


def test_a_spec_that_is_valid_but_another_blocks_only_where_it_was_written(spec, tmp_path):
    """In `--out` it is another stage's; in a file that was exchanged it is damage."""
    other, out = spec.model_copy(update={"times": 3}), tmp_path / "out"
    run_stage(spec, out, work)
    (out / "manifest.json").unlink()
    (out / "spec.json").write_text(other.model_dump_json())
    assert not run_stage(spec, out, work).reused
    with pytest.raises(StoreError, match="unfinished work of another spec"):
        run_stage(other, out, never)


def test_a_file_too_many_among_the_outputs_goes(spec, tmp_path, caplog):
    def two_words(spec: CountSpec, out: Path) -> Outcome:
        (out / "words").mkdir(exist_ok=True)
        (out / "words" / "one").write_text("1")
        return Outcome(outputs={"words": out / "words"})

    first = run_stage(spec, tmp_path / "out", two_words)
    (tmp_path / "out" / "notes.txt").write_text("a user's")
    assert completed(tmp_path / "out", spec) is not None
    stranger = tmp_path / "out" / "words" / ".two"
    stranger.write_text("2")
    again = run_stage(spec, tmp_path / "out", two_words)
    assert again.outputs == first.outputs
    assert str(stranger) in caplog.text
    assert (tmp_path / "out" / "notes.txt").exists()


def test_what_a_kill_after_the_end_left_goes(spec, tmp_path):
    out = tmp_path / "out"
    for clean in (lambda found: run_stage(spec, out, never), tidy):
        found = run_stage(spec, out, work)
        (out / "work" / "checkpoint-3").mkdir(parents=True)
        (out / ".digests" / "checkpoint-3").write_text("")
        (out / ".spec.json.123").write_text("")
        clean(found)
        lasting = {".lock", ".digests", "spec.json", "words.json", "manifest.json"}
        assert {path.name for path in out.iterdir()} == lasting
        assert [path.name for path in (out / ".digests").iterdir()] == ["spec.json"]


def test_a_folder_that_is_a_file_is_refused(spec, tmp_path):
    (tmp_path / "out").write_text("a user's")
    with pytest.raises(StoreError, match="out cannot be made a folder: choose another --out"):
        run_stage(spec, tmp_path / "out", never)
    assert (tmp_path / "out").read_text() == "a user's"


def test_a_disk_that_gets_full_is_named_and_the_stage_resumes(spec, tmp_path):
    def fills(spec: CountSpec, out: Path) -> Outcome:
        Path("/dev/full").write_text("x")
        raise AssertionError("nothing is written there")

    with pytest.raises(StoreError, match=r"the disk of .*out is full: free some space, then run again to resume"):
        run_stage(spec, tmp_path / "out", fills)
    assert run_stage(spec, tmp_path / "out", work).metrics["words"] == 2


@pytest.mark.parametrize("kind", ["folder", "file", "dangling", "loop", "parent"])
def test_a_link_takes_the_place_of_what_is_none(spec, tmp_path, kind):
    store = Store(tmp_path / "store", "mine")
    link = store.home / "iteration-0" / "count"
    link.parent.mkdir(parents=True)
    if kind == "folder":
        link.mkdir()
        (link / "within").write_text("")
    elif kind == "file":
        link.write_text("")
    elif kind == "parent":
        link.parent.rmdir()
        link.parent.write_text("")
    else:
        link.symlink_to("nowhere" if kind == "dangling" else link)
    assert store.manifest("iteration-0/count") is None
    run_stage(spec, store.folder(spec), work)
    store.link("iteration-0/count", store.folder(spec))
    assert store.manifest("iteration-0/count").key == spec.key()


def test_links_make_the_store_walkable(spec, tmp_path):
    mine = Store(tmp_path / "store", "mine")
    folder = mine.folder(spec)
    run_stage(spec, folder, work)
    mine.link("iteration-0/count", folder)
    mine.link("iteration-0/count", folder)
    assert json.loads((tmp_path / "store/mine/iteration-0/count/manifest.json").read_text())["key"] == spec.key()
    assert mine.manifest("iteration-0/count").artifact("words").path.read_text() == "2"
    assert mine.manifest("iteration-1/count") is None


def test_a_recipe_takes_its_own_links_with_it_and_no_others(tmp_path: Path) -> None:
    store, folder = Store(tmp_path, "e"), tmp_path / "objects" / "stage"
    folder.mkdir(parents=True)
    own = ["comparison", "initial/evaluate", "iteration-0/train", "iteration-10/train"]
    others = ["prepare", "mine", "notes/comparison", "iteration-best/train", "comparison-of-mine"]
    store.check()
    with store.one_recipe("first: 1"):
        for place in (*own, *others):
            store.link(place, folder)
    assert store.holds("first: 1")
    with store.one_recipe("second: 2"):
        assert not store.holds("first: 1")
        assert {place for place in (*own, *others) if (store.home / place).is_symlink()} == set(others)
