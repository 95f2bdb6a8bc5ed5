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

from iris_core import store
from iris_core.errors import StoreError
from iris_core.store import (
    Artifact,
    Manifest,
    Outcome,
    Spec,
    Store,
    completed,
    read_manifest,
    run_stage,
)

pytestmark = pytest.mark.unit


class CountSpec(Spec):
    stage: ClassVar[str] = "count"
    text: Artifact
    times: int = 1


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "text").write_text("one two")
    return CountSpec(text=Artifact.of(tmp_path / "text"))


def work(spec: CountSpec, out: Path) -> Outcome:
    words = len(spec.text.path.read_text().split()) * spec.times
    (out / "words.json").write_text(json.dumps(words))
    (out / "work").mkdir()
    (out / "work" / "scratch").write_text("x")
    return Outcome(outputs={"words": out / "words.json"}, metrics={"words": words})


def never(spec: CountSpec, out: Path) -> Outcome:
    raise AssertionError("must be reused")


def test_the_key_is_of_content_not_of_places(spec, tmp_path):
    shutil.copy(tmp_path / "text", tmp_path / "other")
    moved = CountSpec(text=Artifact.of(tmp_path / "other"), execution={"threads": 2})
    assert moved.key() == spec.key()
    assert spec.model_copy(update={"times": 2}).key() != spec.key()
    assert spec.model_copy(update={"versions": {"torch": "2"}}).key() != spec.key()
    (tmp_path / "other").write_text("changed")
    assert CountSpec(text=Artifact.of(tmp_path / "other")).key() != spec.key()


def test_runs_once_and_is_reused(spec, tmp_path):
    first = run_stage(spec, tmp_path / "out", work)
    assert first.metrics == {"words": 2}
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
    monkeypatch.setattr(store, "SAY_EVERY_S", 0.2)
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
        waiting = threading.Thread(
            target=lambda: made.append(run_stage(spec, tmp_path / "out", work))
        )
        waiting.start()
        while caplog.text.count("out is in use by another run: waiting for it to end") < 3:
            assert waiting.is_alive()
            time.sleep(0.05)
        assert not made
        holder.kill()
        waiting.join()
    assert made[0].metrics == {"words": 2}
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


def test_a_store_of_another_experiment_is_refused(tmp_path):
    Store(tmp_path, "mine").claim({"model": "a", "data": "b"})
    Store(tmp_path, "mine").claim({"model": "a", "data": "b"})
    with pytest.raises(
        StoreError,
        match=r"holds another experiment \(model was a, now c\): give this one another `name`",
    ):
        Store(tmp_path, "mine").claim({"model": "c", "data": "b"})
    Store(tmp_path, "other").claim({"model": "c", "data": "b"})


def test_links_make_the_store_walkable(spec, tmp_path):
    mine = Store(tmp_path / "store", "mine")
    folder = mine.folder(spec)
    run_stage(spec, folder, work)
    mine.link("iteration-0/count", folder)
    mine.link("iteration-0/count", folder)
    assert (
        json.loads((tmp_path / "store/mine/iteration-0/count/manifest.json").read_text())["key"]
        == spec.key()
    )
    assert mine.manifest("iteration-0/count").artifact("words").path.read_text() == "2"
    assert mine.manifest("iteration-1/count") is None
