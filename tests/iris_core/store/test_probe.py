"""The probe of a shared store, between two processes of this machine, and with each fault it is there for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iris_core.common.errors import StoreError
from iris_core.store.probe import FILE, FOLDER, LINK, LOCK, check_probe, end_probe, write_probe

pytestmark = pytest.mark.unit

CHECK = (
    "import sys; from pathlib import Path; from iris_core.store.probe import check_probe\n"
    "print(check_probe(Path(sys.argv[1]), sys.argv[2]))"
)


@pytest.fixture
def token(tmp_path: Path) -> str:
    return write_probe(tmp_path)


def test_another_process_shares_the_store(tmp_path: Path, token: str) -> None:
    ran = subprocess.run([sys.executable, "-c", CHECK, str(tmp_path), token], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    end_probe(tmp_path, token, [ran.stdout.strip()])
    assert list(tmp_path.iterdir()) == []


def test_another_folder_of_the_same_path_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(StoreError, match=r"does not hold what .* mount one POSIX file system"):
        check_probe(tmp_path / "other", token)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"torch": "0.1"}, r"torch is 2.*, but 0\.1 on the run's machine: install the same lock"),
        ({"peft": None}, r"peft is 0.*, but missing on the run's machine"),  # as an engine that is not installed there
        ({"vllm": "0.1+cu0"}, r"vllm is .*, but 0\.1\+cu0 on the run's machine"),
    ],
)
def test_other_versions_are_refused(tmp_path: Path, token: str, theirs: dict[str, str | None], message: str) -> None:
    file = tmp_path / FOLDER / token / FILE
    known = {**json.loads(file.read_text()), **theirs}
    file.write_text(json.dumps({name: version for name, version in known.items() if version}))
    with pytest.raises(StoreError, match=message):
        check_probe(tmp_path, token)


def test_locks_that_others_do_not_see_are_refused(tmp_path: Path, token: str) -> None:
    lock = tmp_path / FOLDER / token / LOCK
    lock.unlink()  # as on a file system with locks of its own on each machine
    lock.touch()
    with pytest.raises(StoreError, match="has locks that other machines do not see"):
        check_probe(tmp_path, token)


def test_a_broken_link_is_refused(tmp_path: Path, token: str) -> None:
    (tmp_path / FOLDER / token / LINK).unlink()
    with pytest.raises(StoreError, match="does not hold"):
        check_probe(tmp_path, token)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / FOLDER).symlink_to("/proc/self")
    with pytest.raises(StoreError, match="has no files, links or locks to write"):
        write_probe(tmp_path)


def test_what_a_node_wrote_and_nobody_sees_is_refused(tmp_path: Path, token: str) -> None:
    name = check_probe(tmp_path, token)
    os.remove(tmp_path / FOLDER / token / name)
    with pytest.raises(StoreError, match="does not show what .* has written"):
        end_probe(tmp_path, token, [name])
    assert list(tmp_path.iterdir()) == []
