"""Files between the machines of ranks: two ranks on each of two machines, which are folders here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.s3 import free_port

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
STAGE = "stores/s3+bucket+prefix/objects/train-0"
RANK = """
import sys; from pathlib import Path
from iris_core.execution import distributed, exchange
out = Path(sys.argv[1])
rank, place = distributed.rank(), out / ".new" / "checkpoint-4"

def work():
    assert exchange.machines_apart(out) == (2,)
    exchange.spread(out, place)
    place.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    (place / f"part-{rank}").write_bytes(bytes([rank]) * (rank * 10_000_000))
    (place / "parts").mkdir(exist_ok=True)
    (place / "parts" / f"empty-{rank}").touch()
    exchange.gather(out, place)
    if rank == 0:
        place.rename(out / "checkpoint-4")
    exchange.spread(out, out / "checkpoint-4")
    files = {file.name: file.read_bytes() for file in (out / "checkpoint-4").rglob("*") if file.is_file()}
    expected = {f"part-{each}": bytes([each]) * (each * 10_000_000) for each in range(4)}
    assert files == expected | {f"empty-{each}": b"" for each in range(4)}, list(files)
    exchange.forget(out)

distributed.all_ranks(lambda work: work(), work)
"""


def ranks(outs: list[Path]) -> list[tuple[int, str]]:
    """Runs a rank on each of the folders, two to a machine; how each has ended, and its errors."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(outs))}
    running = []
    for number, out in enumerate(outs):
        environment = {**os.environ, **address, "RANK": str(number), "LOCAL_RANK": str(number % 2)}
        command = [sys.executable, "-c", RANK, str(out)]
        running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    try:
        errors = [each.communicate(timeout=120)[1] for each in running]
    finally:
        for each in running:
            each.kill()
    return [(each.returncode, text) for each, text in zip(running, errors, strict=True)]


def test_machines_with_mirrors_exchange_what_they_have_written(tmp_path: Path) -> None:
    """What an earlier try has left on the other machine is not taken for this one's."""
    here, there = tmp_path / "a" / STAGE, tmp_path / "b" / STAGE
    for left in (".new/checkpoint-4/part-9", "checkpoint-4/part-8"):
        (there / left).parent.mkdir(parents=True)
        (there / left).write_text("of an earlier try")
    ended = ranks([here, here, there, there])
    assert [code for code, _ in ended] == [0, 0, 0, 0], ended
    assert {path.name for path in here.rglob("*") if path.is_file()} == {
        *(f"part-{rank}" for rank in range(4)),
        *(f"empty-{rank}" for rank in range(4)),
    }
    assert not there.exists()


def test_machines_that_see_different_folders_of_a_local_store_are_refused(tmp_path: Path) -> None:
    ended = ranks([tmp_path / name / "train-0" for name in "aab"])
    message = "StoreError: .*: the machines of these ranks do not see one folder .*: mount one POSIX file system"
    assert all(re.search(message, text) for _, text in ended), ended
