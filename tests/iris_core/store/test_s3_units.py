"""Units and inputs in S3, against a real server: which copy counts, and what an outage or a slow upload costs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from iris_core.common import mirrors
from iris_core.common.errors import ModelError, StoreError
from iris_core.modeling import loading
from iris_core.store import Artifact, Policy, Store, run_stage
from iris_core.store.inputs import check_inputs
from iris_core.store.remote import remote
from iris_core.store.units import Units
from iris_core.store.uploads import uploading
from tests.s3 import Proxy
from tests.stages.units import UnitsSpec, work

pytestmark = pytest.mark.integration


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
