"""Full disks are named by one error, whichever library runs into them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iris_core.common.disk import full_disk_errors
from iris_core.common.errors import ServiceError, StoreError

SIZE = 4 << 20
MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
WRITERS = f"""
import json, sqlite3, sys
from pathlib import Path
import pyarrow, torch
from pyarrow import parquet
from safetensors.torch import save_file
from iris_core.common.disk import full_disk_errors
from iris_core.common.files import write_atomic

disk, many = Path(sys.argv[1]), {SIZE}

def fill_database():
    with sqlite3.connect(disk / "database") as database:
        database.execute("create table numbers (bytes blob)")
        database.execute("insert into numbers values (?)", (bytes(many),))

writers = {{
    "text": lambda: write_atomic(disk / "text", "x" * 2 * many),
    "parquet": lambda: parquet.write_table(pyarrow.table({{"x": torch.rand(many).numpy()}}), disk / "table"),
    "safetensors": lambda: save_file({{"x": torch.rand(many)}}, disk / "weights"),
    "torch": lambda: torch.save({{"x": torch.rand(many)}}, disk / "state"),
    "sqlite": fill_database,
}}
found = {{}}
for name, write in writers.items():
    try:
        with full_disk_errors(disk):
            write()
    except Exception as error:
        found[name] = f"{{type(error).__name__}}: {{error}}"
    for file in disk.iterdir():
        file.unlink()
print(json.dumps(found))
"""


@pytest.mark.integration
def test_every_library_s_full_disk_is_one_error(tmp_path: Path) -> None:
    """On a real disk of four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={SIZE} none "$0" && exec "$@"'
    command = [*MOUNT, mount, str(disk), sys.executable, "-c", WRITERS, str(disk)]
    may = subprocess.run([*MOUNT, mount, str(disk), "true"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    full = f"StoreError: the disk of {disk} is full: free some space, then run again to resume"
    found = json.loads(done.stdout)
    names = ("text", "parquet", "safetensors", "torch", "sqlite")
    assert found == dict.fromkeys(names, full)


@pytest.mark.unit
def test_a_full_disk_is_found_behind_what_it_was_raised_from(tmp_path: Path) -> None:
    def register() -> None:
        try:
            with open("/dev/full", "w") as file:
                file.write("x")
        except OSError as error:
            raise ServiceError("MLflow failed") from error

    with (
        pytest.raises(StoreError, match=rf"the disk of {tmp_path} is full"),
        full_disk_errors(tmp_path),
    ):
        register()
    with (
        pytest.raises(StoreError, match="is full"),
        full_disk_errors(tmp_path),
    ):
        raise ServiceError("MLflow failed (sqlite3.OperationalError: database or disk is full)")


@pytest.mark.unit
@pytest.mark.parametrize("error", [ServiceError("no answer"), OSError(5, "I/O"), RuntimeError()])
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), full_disk_errors(tmp_path):
        raise error
