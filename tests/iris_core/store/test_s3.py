"""Stores in S3, against a real server: two machines are two cache folders."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iris_core.common import mirrors
from iris_core.common.digest import file_digest, folder_digest
from iris_core.common.errors import ServiceError, StageFailed, StoreError
from iris_core.store import Artifact, Execution, Manifest, Outcome, Store, completed, read_manifest, run_stage
from iris_core.store.folders import DIGESTS, LOCK, MANIFEST, WORK
from iris_core.store.inputs import fetch_inputs, localized
from iris_core.store.places import COMPARISON
from iris_core.store.remote import Remote
from iris_core.store.units import Units
from tests.processes import PATIENCE_S
from tests.s3 import CREDENTIALS, Proxy, contents, files
from tests.stages.units import UnitsSpec, content, work

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
LEASE_S = 15.0  # longer than a process takes to start on a busy machine


def run(uri: str, spec: UnitsSpec) -> Manifest:
    return run_stage(spec, Store(uri, "e").folder(spec), work)


def launch(
    uri: str, spec: UnitsSpec, machine: Path, endpoint: str | None = None, gate: Path | None = None
) -> subprocess.Popen[str]:
    """Runs the stage in a process of its own, as `python -m iris_core.units`; the unit in `gate` waits at it."""
    folder = machine / "stores" / mirrors.local_root(uri).name / "objects" / f"units-{spec.key()[:16]}"
    (machine / "spec.json").parent.mkdir(exist_ok=True)
    (machine / "spec.json").write_text(spec.model_dump_json())
    environment = {
        **os.environ,
        "IRIS_CACHE": str(machine),
        "TEST_LEASE_S": str(LEASE_S),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "stages"), str(ROOT)]),
        **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {}),
        **({"TEST_GATES": str(gate.parent)} if gate else {}),
    }
    command = [sys.executable, "-m", "iris_core.units", "--spec", str(machine / "spec.json"), "--out", str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def closed(gate: Path) -> Path:
    gate.touch()
    return gate


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What the process wrote to its error output until it ended with `code`."""
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, log
    return log


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    """Waits until `condition` holds while the process runs."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def parts(endpoint: str, uri: str) -> set[str]:
    """The names of the complete units in the bucket."""
    return {Path(name).name for name in files(endpoint).find(uri) if f"/{DIGESTS}/part" in name}


def test_the_bucket_has_what_a_local_store_has(
    uri: str, endpoint: str, source: Artifact, on: Callable[[str], None], tmp_path: Path
) -> None:
    on("a")
    spec = UnitsSpec(source=source)
    local = run_stage(spec, tmp_path / "local", work)
    made = run(uri, spec)
    assert made.outputs == local.outputs
    assert folder_digest(made.folder / "parts") == folder_digest(tmp_path / "local" / "parts")
    name = f"objects/units-{spec.key()[:16]}"
    there = contents(endpoint, f"{uri}/{name}")
    assert set(there) == {*made.files, MANIFEST, *(f"{DIGESTS}/{Path(file).name}" for file in made.files)}
    assert all(there[file] == (made.folder / file).read_bytes() for file in [*made.files, MANIFEST])


def test_a_chain_of_stages_is_reused_on_another_machine(
    uri: str, source: Artifact, on: Callable[[str], None], tmp_path: Path
) -> None:
    on("a")
    first = UnitsSpec(source=source)
    made = run(uri, first)
    second = UnitsSpec(source=Artifact.of(made.folder / "parts" / "part-0.bin"))
    chained = run(uri, second)
    on("b")
    again = run(uri, first)
    assert again.reused
    assert again.folder != made.folder
    assert again.metrics == made.metrics
    assert folder_digest(again.folder / "parts") == folder_digest(made.folder / "parts")
    there = localized(second)
    assert there.key() == second.key()
    assert str(there.source.path).startswith(str(tmp_path / "b"))
    found = completed(Store(uri, "e").folder(second), there)
    assert found
    assert found.files == chained.files


def test_inputs_are_fetched(uri: str, source: Artifact, on: Callable[[str], None]) -> None:
    on("a")
    made = run(uri, UnitsSpec(source=source))
    specs = [UnitsSpec(source=artifact) for artifact in (made.artifact("parts"), made.as_artifact())]
    on("b")
    for spec in map(localized, specs):
        assert not mirrors.local_root(uri).exists() or spec.source.path.name == MANIFEST
        fetch_inputs(spec)
        assert spec.source.path.exists()
        assert spec.source.intact() == spec.source.path
    inside = localized(specs[0]).source.path / "part-1.bin"
    inside.write_bytes(b"damaged")
    assert localized(specs[0]).source.holds()
    assert inside.read_bytes() == content(b"seed", 1, 1000)
    with pytest.raises(StoreError, match=r"/nowhere/model is not on .*, nor in an S3 store: put it there"):
        fetch_inputs(UnitsSpec(source=Artifact(path=Path("/nowhere/model"), digest="0")))


def test_a_killed_stage_goes_on_on_another_machine(
    uri: str, endpoint: str, source: Artifact, tmp_path: Path, on: Callable[[str], None]
) -> None:
    spec, gate = UnitsSpec(source=source, count=6), closed(tmp_path / "3")
    process = launch(uri, spec, tmp_path / "a", gate=gate)
    wait_for(process, lambda: "part-2.bin" in parts(endpoint, uri))
    process.kill()
    process.wait()
    log = finish(launch(uri, spec, tmp_path / "b"))
    assert "is held by a run on another machine" in log
    on("b")
    made = read_manifest(Store(uri, "e").folder(spec))
    assert made
    assert made.metrics["written"] == [3, 4, 5]
    assert [(made.folder / "parts" / f"part-{i}.bin").read_bytes() for i in range(6)] == [
        content(b"seed", i, 1000) for i in range(6)
    ]
    assert not [name for name in contents(endpoint, uri) if f"/{WORK}/" in name or name.endswith(LOCK)]


def test_old_checkpoints_leave_the_bucket(uri: str, endpoint: str, source: Artifact, tmp_path: Path) -> None:
    def kept() -> set[int]:  # a busy machine may upload none of those that are replaced at once
        names = files(endpoint).find(uri)
        return {int(found[1]) for name in names if (found := re.search(rf"/{WORK}/checkpoint-(\d+)/", name))}

    process = launch(uri, UnitsSpec(source=source, count=200, pause=0.3), tmp_path / "a")
    wait_for(process, lambda: max(kept(), default=0) >= 4)
    process.kill()
    process.wait()
    assert not kept() & {0, 1}


def test_a_killed_stage_goes_on_at_once_on_its_own_machine(
    uri: str, endpoint: str, source: Artifact, tmp_path: Path
) -> None:
    spec, gate = UnitsSpec(source=source, count=3), closed(tmp_path / "1")
    process = launch(uri, spec, tmp_path / "a", gate=gate)
    wait_for(process, lambda: parts(endpoint, uri))
    process.kill()
    process.wait()
    assert "is held" not in finish(launch(uri, spec, tmp_path / "a"))


def test_a_server_that_dies_in_an_upload_is_waited_for(
    uri: str, endpoint: str, source: Artifact, tmp_path: Path, on: Callable[[str], None]
) -> None:
    proxy = Proxy(endpoint)
    spec = UnitsSpec(source=source, count=3, size=8 << 20, execution=Execution(patience=60))
    proxy.start(dies_after=12 << 20)  # in the second unit
    process = launch(uri, spec, tmp_path / "a", proxy.uri)
    assert proxy.process
    proxy.process.wait(PATIENCE_S)
    assert "part-1.bin" not in parts(endpoint, uri)
    assert process.stderr
    assert any("does not answer" in line and "waiting up to" in line for line in process.stderr)  # reads until then
    proxy.start()
    finish(process)
    proxy.kill()
    on("b")
    made = run(uri, spec)
    assert made.reused
    assert (made.folder / "parts" / "part-1.bin").read_bytes() == content(b"seed", 1, 8 << 20)


def test_a_server_that_stays_away_ends_the_stage_which_resumes(
    uri: str, endpoint: str, source: Artifact, tmp_path: Path, on: Callable[[str], None]
) -> None:
    proxy = Proxy(endpoint)
    spec = UnitsSpec(source=source, count=3, size=8 << 20, execution=Execution(patience=1))
    proxy.start(dies_after=12 << 20)
    log = finish(launch(uri, spec, tmp_path / "a", proxy.uri), code=75)
    assert "its server does not answer" in log
    assert "run again to resume" in log
    finish(launch(uri, spec, tmp_path / "a"))
    on("a")
    made = read_manifest(Store(uri, "e").folder(spec))
    assert made
    assert 0 not in made.metrics["written"]


def test_of_two_writers_one_completes_the_stage(
    uri: str, endpoint: str, source: Artifact, tmp_path: Path, on: Callable[[str], None]
) -> None:
    """The first one stalls for longer than its lease, the second takes over, the first comes back too late."""
    spec, gate = UnitsSpec(source=source, count=4), closed(tmp_path / "2")
    stalled = launch(uri, spec, tmp_path / "a", gate=gate)
    wait_for(stalled, lambda: "part-1.bin" in parts(endpoint, uri))
    stalled.send_signal(signal.SIGSTOP)
    finish(launch(uri, spec, tmp_path / "b"))
    manifest = contents(endpoint, uri)[f"objects/units-{spec.key()[:16]}/{MANIFEST}"]
    gate.unlink()
    stalled.send_signal(signal.SIGCONT)
    log = finish(stalled, code=70)
    assert "was taken over by another run" in log
    assert contents(endpoint, uri)[f"objects/units-{spec.key()[:16]}/{MANIFEST}"] == manifest
    finish(launch(uri, spec, tmp_path / "a"))
    on("a")
    assert (Store(uri, "e").folder(spec) / MANIFEST).read_bytes() == manifest


def test_a_unit_of_a_worker_on_another_machine_is_fetched(
    uri: str, source: Artifact, on: Callable[[str], None]
) -> None:
    """As in generation on several nodes: the worker has no lease, the process of the stage takes its units."""
    spec = UnitsSpec(source=source, count=3)

    def work_of_both(spec: UnitsSpec, out: Path) -> Outcome:
        on("b")
        there = mirrors.here(out)
        units, units_here = (Units(folder, spec.key(), patience=1) for folder in (there, out))
        with units.writing(there / "parts" / "part-1.bin") as place:
            place.write_bytes(content(b"seed", 1, spec.size))
        on("a")
        assert not (out / "parts" / "part-1.bin").exists()
        assert units_here.written(out / "parts" / "part-1.bin").read_bytes() == content(b"seed", 1, spec.size)
        with pytest.raises(StageFailed, match=r"part-2\.bin is not there, or damaged, though a worker has written it"):
            units_here.written(out / "parts" / "part-2.bin")
        return work(spec, out)

    on("a")
    made = run_stage(spec, Store(uri, "e").folder(spec), work_of_both)
    assert made.metrics["written"] == [0, 2]
    assert (made.folder / "parts" / "part-1.bin").read_bytes() == content(b"seed", 1, 1000)


def test_a_checkpoint_of_fewer_ranks_replaces_what_a_killed_upload_has_left(
    uri: str, endpoint: str, on: Callable[[str], None]
) -> None:
    for machine, ranks in (("a", 3), ("b", 2)):
        on(machine)
        folder = mirrors.local_root(uri) / "objects" / "train-0"
        with Units(folder, "key").writing(folder / WORK / "checkpoint-4") as place:
            place.mkdir()
            for rank in range(ranks):
                (place / f"{rank}.part").write_text(f"{rank} of {ranks}")
        if machine == "a":
            files(endpoint).rm(f"{uri}/objects/train-0/{DIGESTS}/checkpoint-4")  # which would have been written last
    on("c")
    folder = mirrors.local_root(uri) / "objects" / "train-0"
    assert Units(folder, "key").holds(folder / WORK / "checkpoint-4")
    assert sorted(path.name for path in (folder / WORK / "checkpoint-4").iterdir()) == ["0.part", "1.part"]


def test_damage_in_the_bucket_is_found(
    uri: str, endpoint: str, source: Artifact, on: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    on("a")
    spec = UnitsSpec(source=source)
    made = run(uri, spec)
    files(endpoint).pipe(f"{uri}/objects/{made.folder.name}/parts/part-2.bin", b"damaged")
    on("b")
    again = run(uri, spec)
    assert not again.reused
    assert again.metrics["written"] == [2]
    assert "part-2.bin is damaged" in caplog.text
    assert contents(endpoint, uri)[f"objects/{made.folder.name}/parts/part-2.bin"] == content(b"seed", 2, 1000)
    on("a")
    assert run(uri, spec).reused


def test_what_the_bucket_lost_is_uploaded_again(
    uri: str, endpoint: str, source: Artifact, on: Callable[[str], None]
) -> None:
    on("a")
    spec = UnitsSpec(source=source)
    run(uri, spec)
    before = contents(endpoint, uri)
    files(endpoint).rm(f"{uri}/objects", recursive=True)
    assert completed(Store(uri, "e").folder(spec), spec) is None
    assert run(uri, spec).reused
    after = contents(endpoint, uri)
    assert {name: after.get(name) for name in before if DIGESTS not in name} == {
        name: each for name, each in before.items() if DIGESTS not in name
    }


def test_an_experiment_on_two_machines(uri: str, source: Artifact, on: Callable[[str], None]) -> None:
    on("a")
    store, spec = Store(uri, "mine"), UnitsSpec(source=source)
    store.claim({"model": "m"})
    made = run(uri, spec)
    with store.one_recipe("first: 1"):
        store.link("iteration-0/train", made.folder)
        store.link("prepare", made.folder)
        store.link(COMPARISON, made.folder)
    on("b")
    other = Store(uri, "mine")
    other.check()
    found = other.manifest("iteration-0/train")
    assert found
    assert found.files == made.files
    assert other.manifest("iteration-1/train") is None
    assert other.holds("first: 1")
    assert other.manifest(COMPARISON) is not None
    assert found.artifact("parts").intact().is_dir()
    with pytest.raises(StoreError, match=r"holds another experiment \(model was m, now n\)"):
        other.claim({"model": "n"})
    with other.one_recipe("second: 2"):
        assert other.manifest("iteration-0/train") is None
        assert other.manifest(COMPARISON) is None
        assert other.manifest("prepare") is not None
        on("a")
        assert not store.holds("first: 1")
        with pytest.raises(StoreError, match="with other settings is under way on"), store.one_recipe("first: 1"):
            pass
    with store.one_recipe("second: 2"):
        assert store.manifest("iteration-0/train") is None  # its link is gone on this machine, too


def test_a_bucket_that_cannot_be_used(uri: str, endpoint: str, on: Callable[[str], None], monkeypatch) -> None:
    on("a")
    with pytest.raises(StoreError, match=r"there is no bucket 'nothing' for s3://nothing/x: create it"):
        Remote("s3://nothing/x").check()
    Remote(uri).check()
    assert files(endpoint).find(uri) == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"its server does not answer"):
        Remote(uri).check()
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match=r"cannot be used .* set AWS_ACCESS_KEY_ID"):
        Remote(uri).check()


def test_a_large_file_goes_up_in_parts(uri: str, endpoint: str, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(101 << 20)
        file.write(b"begin")
    digest = file_digest(tmp_path / "large")
    remote = Remote(uri)
    for _ in range(2):  # the second time it is there
        remote.upload([(tmp_path / "large", "a/large", digest)])
    assert files(endpoint).info(f"{uri}/a/large")["ETag"].strip('"').endswith("-3")  # of three parts
    remote.download([("a/large", tmp_path / "b" / "large")])
    assert file_digest(tmp_path / "b" / "large") == digest


def test_the_extra_that_is_missing() -> None:
    program = "import sys; sys.modules['s3fs'] = None; from iris_core.store.remote import Remote; Remote('s3://a')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ConfigError: store: an S3 store needs s3fs, which is not installed: pip install 'iris[s3]'" in ran.stderr


def test_pointers_are_small_json(uri: str, endpoint: str, source: Artifact, on: Callable[[str], None]) -> None:
    on("a")
    store, spec = Store(uri, "mine"), UnitsSpec(source=source)
    store.link("iteration-0/train", store.folder(spec))
    found = json.loads(contents(endpoint, uri)["mine/iteration-0/train.link"])
    assert found == {"folder": f"objects/units-{spec.key()[:16]}"}
