"""Units and inputs in S3, against a real server: which copy counts, and what an outage or a slow upload costs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iris_core.common import mirrors
from iris_core.common.errors import ModelError, StoreError
from iris_core.modeling import loading
from iris_core.store import Artifact, Policy, Store, run_stage
from iris_core.store.folders import DIGESTS, LINKS, WORK
from iris_core.store.inputs import check_inputs
from iris_core.store.remote import remote
from iris_core.store.units import Units
from iris_core.store.uploads import uploading
from tests.s3 import CREDENTIALS, Proxy
from tests.stages.units import UnitsSpec, work

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
UPLOAD = """
import sys, threading; from pathlib import Path
from iris_core.store.remote import Remote
files = [(Path(sys.executable), name, "0") for name in ("a", "b")]
threading.Thread(target=Remote("s3://bucket/prefix").upload, args=[files], daemon=True).start()
sys.stdin.read()
"""


def folder_of(uri: str) -> Path:
    """Of a stage, in the mirror of this machine."""
    return mirrors.local_root(uri) / "objects" / "generate-0"


def write(units: Units, path: Path, content: str) -> None:
    with units.writing(path) as place:
        place.write_text(content)


def test_an_outage_while_a_unit_is_looked_for_is_waited_out(
    uri: str, endpoint: str, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(endpoint)
    proxy.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.uri)
    on("a")
    write(Units(folder_of(uri), "key"), folder_of(uri) / "shard-0", "sampled")
    proxy.kill()
    on("b")
    restart = threading.Timer(1, proxy.start)
    restart.start()
    assert Units(folder_of(uri), "key", patience=60).holds(folder_of(uri) / "shard-0")
    restart.join()
    proxy.kill()
    assert (folder_of(uri) / "shard-0").read_text() == "sampled"


def test_a_damaged_model_is_fetched_again(
    uri: str, source: Artifact, on: Callable[[str], None], tmp_path: Path
) -> None:
    on("a")
    spec = UnitsSpec(source=source)
    made = run_stage(spec, Store(uri, "e").folder(spec), work).artifact("parts")
    on("b")
    here = made.model_copy(update={"path": mirrors.here(made.path)})
    for check in (lambda: loading.verify(Policy(model=here)), lambda: check_inputs([made], patience=1)):
        assert here.holds()
        (here.path / "part-1.bin").write_bytes(bytes(1000))
        check()
        assert Artifact.of(here.path).digest == made.digest
    source.path.write_text("changed")
    with pytest.raises(ModelError, match="source is missing or has changed since"):
        loading.verify(Policy(model=source))
    with pytest.raises(StoreError, match=r"source is missing on .*, or is not what the run's machine has there: put"):
        check_inputs([source], patience=1)


def test_the_unit_in_the_bucket_counts_where_two_machines_have_made_one(uri: str, on: Callable[[str], None]) -> None:
    """Machine a made both units, and was lost before it had uploaded them; b made the first one again."""
    on("a")
    units, folder = Units(folder_of(uri), "key"), folder_of(uri)
    for name in ("shard-0", "shard-1"):
        write(units, folder / name, "of a")
    remote(uri).remove(remote(uri).names(""))
    on("b")
    write(Units(folder_of(uri), "key"), folder_of(uri) / "shard-0", "of b")
    on("a")
    assert units.holds(folder / "shard-0")
    assert not units.holds(folder / "shard-1")  # a worker, which would never upload it
    assert (folder / "shard-0").read_text() == "of b"
    write(units, folder / "shard-0", "of a")
    on("b")
    with uploading(folder_of(uri), patience=1) as copy:
        assert copy
        write(Units(folder_of(uri), "key"), folder_of(uri) / "shard-2", "of b")
        copy.resume()
        assert (folder_of(uri) / "shard-0").read_text() == "of a"
        assert Units(folder_of(uri), "key").holds(folder_of(uri) / "shard-2")


def whole_units(uri: str, folder: Path) -> set[str]:
    """The names of the complete units in the bucket."""
    return set(remote(uri).names(f"objects/{folder.name}/{DIGESTS}"))


def test_the_bucket_has_a_checkpoint_also_where_uploads_are_slow(
    uri: str, endpoint: str, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is replaced while it is uploaded, the others before. The last one is of no use once all is done."""
    proxy = Proxy(endpoint)
    proxy.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.uri)
    on("a")
    units, folder = Units(folder_of(uri), "key"), folder_of(uri)
    paths = [folder / WORK / f"checkpoint-{step}" for step in range(6)]
    with uploading(folder, patience=120) as copy:
        assert copy
        proxy.kill()
        write_checkpoint(units, paths[0])
        until = time.monotonic() + 60
        while not (folder / LINKS / "checkpoint-0").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        for path in paths[1:4]:
            write_checkpoint(units, path)
        for path in paths[:4]:
            units.remove(path)
        proxy.start()
        copy.drain()
        assert whole_units(uri, folder) == {"checkpoint-0"}
        write_checkpoint(units, paths[4])
        copy.drain()
        assert whole_units(uri, folder) == {"checkpoint-4"}
        done = threading.Event()
        copy.add(done.wait)
        write_checkpoint(units, paths[5])
        threading.Timer(1, done.set).start()
        copy.publish("{}", {})
        assert whole_units(uri, folder) == {"checkpoint-4"}
    proxy.kill()


def write_checkpoint(units: Units, path: Path) -> None:
    with units.writing(path) as place:
        place.mkdir()
        (place / "state").write_text(path.name)


def test_an_upload_does_not_keep_a_process_that_has_failed() -> None:
    """The server takes the request and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, **CREDENTIALS, **address}
        with subprocess.Popen([sys.executable, "-c", UPLOAD], env=environment, stdin=subprocess.PIPE) as process:
            server.accept()
            process.communicate(timeout=45)  # a request is given up after a minute
        assert process.returncode == 0
