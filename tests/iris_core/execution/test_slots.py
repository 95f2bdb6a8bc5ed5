"""Two stages never share a GPU, whatever ends their processes, and never wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iris_core.common.errors import ConfigError
from iris_core.execution import slots, supervision
from tests.processes import below, wait_for

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from iris_core.execution import slots, supervision
slots.FOLDER = Path(sys.argv[1])
with slots.held(["0"], 1, "train of demo", print) as taken:
    label = supervision.Label.new()
    stage = [sys.executable, "-c", f"import time; open({sys.argv[2]!r}, 'w').write('begun'); time.sleep(1000)"]
    supervision.start("train", stage, {**__import__("os").environ}, 1, label, pass_fds=taken.descriptors)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slots, "FOLDER", tmp_path / "gpus")
    monkeypatch.delenv(slots.SHARE_VARIABLE, raising=False)
    return tmp_path / "gpus"


def silent(message: str) -> None:
    raise AssertionError(f"it waits: {message}")


def test_free_gpus_come_first() -> None:
    with slots.held(["0", "1", "2"], 1, "one", silent) as one, slots.held(["0", "1", "2"], 2, "two", silent) as two:
        assert (one.gpus, two.gpus) == (["0"], ["1", "2"])
        assert slots.users(["0", "1"]) == {
            "0": f"one (process {os.getpid()})",
            "1": f"two (process {os.getpid()})",
        }
    assert slots.users(["0", "1", "2"]) == {}


def test_a_stage_without_gpus_takes_none(folder: Path) -> None:
    for names, count in ((["0"], 0), ([], 2)):
        with slots.held(names, count, "prepare", silent) as taken:
            assert taken == slots.Held([], [])
    assert not folder.exists()


def test_a_wait_is_announced_once_and_ends_with_the_holder() -> None:
    said: list[str] = []
    got = threading.Event()

    def second() -> None:
        with slots.held(["0", "1"], 2, "two", said.append):
            got.set()

    with slots.held(["1"], 1, "evaluate in /store", silent):
        thread = threading.Thread(target=second)
        thread.start()
        wait_for(lambda: said)
        assert not got.wait(3 * slots.LOOK_EVERY_S)
        with slots.held(["0"], 1, "a stage that needs one", silent):
            pass  # what waits keeps no GPU from others
    thread.join()
    assert got.is_set()
    assert said == [f"GPU 1 is in use by evaluate in /store (process {os.getpid()}): waiting"]


def test_stages_that_want_several_gpus_all_get_them_and_never_together() -> None:
    users: dict[str, int] = dict.fromkeys("012", 0)
    done: list[int] = []

    def stage(number: int) -> None:
        with slots.held(["0", "1", "2"], 2, f"stage {number}", lambda message: None) as taken:
            for name in taken.gpus:
                users[name] += 1
                assert users[name] == 1
            time.sleep(0.05)
            for name in taken.gpus:
                users[name] -= 1
        done.append(number)

    threads = [threading.Thread(target=stage, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(6))


@pytest.fixture
def holder(folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher that has GPU 0, with a stage below a supervisor."""
    begun = tmp_path / "begun"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), str(begun)], env=environment)
    wait_for(begun.exists)
    yield process
    process.kill()
    process.wait()


def test_the_gpu_of_a_killed_launcher_is_free_when_its_stage_has_ended(holder: subprocess.Popen[bytes]) -> None:
    supervisor, _stage = children = below(holder.pid)
    assert slots.users(["0"]) == {"0": f"train of demo (process {holder.pid})"}
    supervisor.suspend()  # so that the stage outlives its launcher
    holder.kill()
    holder.wait()
    assert "0" in slots.users(["0"])
    supervisor.resume()
    with slots.held(["0"], 1, "next", lambda message: None):
        wait_for(lambda: not any(map(supervision.lives, children)))  # a process closes its files just before its end


def test_stages_share_gpus_if_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with slots.held(["0"], 1, "one", silent):
        monkeypatch.setenv(slots.SHARE_VARIABLE, "1")
        with slots.held(["0"], 1, "two", silent) as taken:
            assert taken == slots.Held(["0"], [])


def test_the_names_of_a_gpu_lead_to_one_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing = "GPU-aa11, NVIDIA H100, 575.1, 81559, 9.0\nGPU-bb22, NVIDIA H100, 575.1, 81559, 9.0"
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<END\n{listing}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    names = "1", "GPU-bb", "GPU-bb22", "MIG-x", "7"
    assert [slots.identity(name) for name in names] == [*["GPU-bb22"] * 3, "MIG-x", "7"]


def test_a_lock_that_cannot_be_opened_is_named(folder: Path) -> None:
    folder.mkdir()
    (folder / "0.lock").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match=rf"{folder}/0\.lock: the lock of GPU 0 .*{slots.SHARE_VARIABLE}=1"):  # noqa: SIM117
        with slots.held(["0"], 1, "train", silent):
            pass
