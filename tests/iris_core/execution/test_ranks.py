"""Ranks below torchrun's agent: an error of any rank is the stage's, and no death of a process leaves another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest

from iris_core.common.errors import DataError, IrisError, StageCrashed, StageFailed
from iris_core.common.ports import free_port
from iris_core.execution import supervision
from iris_core.execution.agent import exit_code
from iris_core.execution.distributed import VARIABLES
from iris_core.execution.launch import launch
from iris_core.store import Artifact, Execution, Manifest
from iris_core.store.folders import LOCK, WORK
from tests.iris_core.training.on_ranks import torchrun
from tests.processes import PATIENCE_S, command_line, processes, wait_for
from tests.s3 import CREDENTIALS
from tests.stages.ranks import RanksSpec

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
PARENT = """
import sys; from pathlib import Path
from iris_core.execution.launch import launch
from tests.stages.ranks import RanksSpec
launch(RanksSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2]), print, print)
"""


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m iris_core.ranks` works, on a machine without GPUs."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "stages"), str(ROOT)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def spec_of(action: str, who: int = 1) -> RanksSpec:
    return RanksSpec(action=action, who=who, execution=Execution(gpus_per_node=2))


def run(folder: Path, action: str, who: int = 1) -> tuple[Manifest, list[object], list[str]]:
    events: list[object] = []
    lines: list[str] = []
    return launch(spec_of(action, who), folder, events.append, lines.append), events, lines


def test_two_ranks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10^0 + 10^1 = 11. Rank 0 alone reports progress; what the other prints is told apart."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RANK", "3")  # of something else, which this is not a part of
    manifest, events, lines = run(tmp_path, "add")
    assert manifest.metrics["total"] == 11
    assert manifest.metrics["ranks"] == 2
    assert manifest.metrics["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [event.model_dump()["done"] for event in events] == [0, 1]  # type: ignore[attr-defined]
    assert {"add in rank 0", "rank 1: add in rank 1"} <= set(lines)
    assert sum("is complete in" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("action", "who", "kind", "message", "retryable"),
    [
        ("refuse", 1, DataError, "data.path: no rows: give some", False),
        ("crash", 1, StageCrashed, "ranks crashed with ZeroDivisionError: of a bug (its log has the traceback)", False),
        ("die", 1, StageFailed, "rank 1 was killed by SIGKILL: run again to resume", True),
    ],
)
def test_the_error_of_a_rank_is_that_of_the_stage(
    tmp_path: Path, action: str, who: int, kind: type[IrisError], message: str, retryable: bool
) -> None:
    """The exchange of the other rank fails, too; that explains nothing."""
    with pytest.raises(kind) as error:
        run(tmp_path, action, who)
    assert type(error.value) is kind
    assert (str(error.value), error.value.retryable) == (message, retryable)
    assert not (tmp_path / "manifest.json").exists()


def test_the_exit_code_is_that_of_the_rank_that_failed_first(capsys: pytest.CaptureFixture[str]) -> None:
    """torchrun sends SIGTERM to the others, and SIGKILL 30 s later to those that still run."""
    assert exit_code({1: (76, 100), 0: (-signal.SIGTERM, 100)}) == 76
    assert exit_code({1: (76, 100), 0: (-signal.SIGKILL, 131)}) == 76
    assert capsys.readouterr().err == ""
    assert exit_code({0: (1, 100), 3: (-signal.SIGKILL, 101)}) == StageFailed.exit_code
    assert capsys.readouterr().err == "error: rank 3 was killed by SIGKILL: run again to resume\n"
    assert exit_code({2: (-signal.SIGTERM, 100), 0: (-signal.SIGTERM, 101)}) == StageFailed.exit_code
    assert "rank 2 was killed by SIGTERM" in capsys.readouterr().err


class Started:
    """A process that launches two ranks, and all that was seen below it."""

    def __init__(self, folder: Path, log: Path):
        self.log = log
        with log.open("w") as file:
            command = [sys.executable, "-c", PARENT, spec_of("endless").model_dump_json(), str(folder)]
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        self.parent = psutil.Process(self.process.pid)
        self.seen: dict[psutil.Process, list[str]] = {}

    def roles(self) -> dict[str, psutil.Process]:
        """The processes by what they are; ranks by their number."""
        found = {"parent": self.parent}
        with suppress(psutil.NoSuchProcess):
            for process in self.parent.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    words = self.seen[process] = process.cmdline()
                    if supervision.__file__ in words:
                        found["supervisor"] = process
                    elif "iris_core.execution.agent" in words:
                        found["agent"] = process
                    elif "iris_core.ranks" in words and "RANK" in process.environ():
                        found[process.environ()["RANK"]] = process
        return found

    def wait_for(self, role: str) -> psutil.Process:
        """The process with this role, once it is there and all ranks have started."""
        return self.wait_until(lambda: (found := self.roles()).keys() >= {"0", "1", role} and found)[role]

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` returns once it holds."""
        until = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < until, self.log.read_text()[-4000:]
            time.sleep(0.05)
        return found


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Two ranks in `out`; none of them is left when the test has ended."""
    found = Started(tmp_path / "out", tmp_path / "log")
    yield found
    supervision.send([*found.seen, found.parent], signal.SIGKILL)
    found.process.wait()


def left(folder: Path, seen: Mapping[psutil.Process, list[str]]) -> list[psutil.Process]:
    """Processes that were seen, that have the label of a launch, or that have `folder` in their command line."""
    labels = supervision.labelled(supervision.LAUNCH_VARIABLE).values()
    every = {*processes(str(folder)), *(process for each in labels for process in each)}
    own = {process for process in every if str(folder) in command_line(process).split()}
    return [process for process in {*seen, *own} if supervision.lives(process)]


def both_work(folder: Path) -> bool:
    return all((folder / WORK / f"rank-{number}").exists() for number in range(2))


def wait_for_end(folder: Path, seen: Mapping[psutil.Process, list[str]]) -> None:
    until = time.monotonic() + PATIENCE_S
    while found := left(folder, seen):
        assert time.monotonic() < until, list(map(command_line, found))
        time.sleep(0.1)


@pytest.mark.parametrize("role", ["1", "agent", "supervisor", "parent"])
def test_no_death_leaves_a_rank(role: str, tmp_path: Path, started: Started) -> None:
    out = tmp_path / "out"
    victim = started.wait_for(role)
    started.wait_until(lambda: both_work(out))
    victim.send_signal(signal.SIGKILL)
    wait_for_end(out, started.seen)
    assert not (out / "manifest.json").exists()
    if role == "1":
        assert "rank 1 was killed by SIGKILL" in started.log.read_text()
        (out / "second").touch()
        assert launch(spec_of("endless"), out).metrics["total"] == 11


@pytest.mark.parametrize("role", ["agent", "parent"])
def test_no_death_leaves_a_rank_that_waits_for_another_run(role: str, tmp_path: Path) -> None:
    """Rank 0 waits for the lock, the other for rank 0."""
    out = tmp_path / "out"
    out.mkdir()
    with filelock.FileLock(out / LOCK):
        started = Started(out, tmp_path / "log")
        victim = started.wait_for(role)
        started.wait_until(lambda: "in use by another run" in started.log.read_text())
        victim.send_signal(signal.SIGKILL)
        wait_for_end(out, started.seen)
        started.process.wait()


def test_no_rank_outlives_torchrun(tmp_path: Path) -> None:
    """torchrun was started by hand and is killed: neither a launcher nor a supervisor looks after the ranks."""
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(spec_of("endless").model_dump_json())
    stage = ["-m", "iris_core.ranks", "--spec", str(spec), "--out", str(out)]
    with subprocess.Popen([*torchrun(2), *stage]) as agent:
        wait_for(lambda: both_work(out))
        agent.kill()
    wait_for_end(out, {})


def by_hand(folder: Path, spec: Path, ranks: int = 2, **changes: str | None) -> list[tuple[int, str]]:
    """Exit codes and error outputs of ranks that were started as Slurm does it: each by itself, without an agent."""
    port, running = str(free_port()), []
    for number in range(ranks):
        found = dict(zip(VARIABLES, (str(number), str(ranks), str(number), "127.0.0.1", port), strict=True))
        asked = {name: value and value.format(number=number) for name, value in changes.items()}
        variables = {name: value for name, value in {**os.environ, **found, **asked}.items() if value is not None}
        command = [sys.executable, "-m", "iris_core.ranks", "--spec", str(spec), "--out", str(folder)]
        running.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=PATIENCE_S)[1] for process in running]
    return [(process.returncode, output) for process, output in zip(running, outputs, strict=True)]


def test_ranks_can_be_started_by_hand(tmp_path: Path) -> None:
    """They work together, and end at once where nothing is left to do."""
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(spec_of("add").model_dump_json())
    assert [code for code, _ in by_hand(out, spec)] == [0, 0]
    written = (out / "sum.json").stat().st_mtime_ns
    reused = by_hand(out, spec)
    assert [code for code, _ in reused] == [0, 0]
    assert f"ranks: reused {out}" in reused[0][1]
    assert (out / "sum.json").stat().st_mtime_ns == written


def test_what_rank_0_refuses_ends_all_ranks_with_its_code(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(spec_of("add").model_dump_json())
    (first, said), (second, nothing) = by_hand(spec, spec)  # the output would be below a file
    assert (first, second) == (2, 2)
    assert "cannot be made a folder" in said
    assert "error: " not in nothing


def test_an_error_of_rank_1_ends_rank_0(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(spec_of("refuse").model_dump_json())
    (first, other), (second, said) = by_hand(tmp_path / "out", spec)
    assert (first, second) == (70, 2)
    assert "error: an exchange between ranks failed (" in other
    assert "Traceback" not in other
    assert "rank 1: error: data.path: no rows: give some" in said.splitlines()


def test_what_takes_a_rank_long_has_no_time_limit(tmp_path: Path) -> None:
    """An exchange has one."""
    spec = tmp_path / "spec.json"
    spec.write_text(spec_of("together").model_dump_json())
    (code, said), _ = by_hand(tmp_path / "out", spec)
    assert (tmp_path / "out" / "slow").exists()
    assert code == 70
    assert "error: an exchange between ranks failed (" in said


def test_a_rank_that_never_comes_is_no_crash(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(spec_of("add").model_dump_json())
    ((code, said),) = by_hand(tmp_path / "out", spec, 1, WORLD_SIZE="2", TEST_EXCHANGE_S="3")
    assert code == 70
    assert said.splitlines()[-1].startswith("error: an exchange between ranks failed (")
    assert said.splitlines()[-1].endswith("run again to resume")


def test_ranks_meet_before_each_machine_fetches_its_inputs(tmp_path: Path) -> None:
    """So that it may take its time. The second of two machines cannot: its cache is empty, and no server answers."""
    manifest = tmp_path / "cache-0" / "stores" / "s3+bucket" / "objects" / "prepare-0" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("of a stage")
    spec = tmp_path / "spec.json"
    spec.write_text(spec_of("add").model_copy(update={"source": Artifact.of(manifest)}).model_dump_json())
    nowhere = {**CREDENTIALS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    (first, said), (second, why) = by_hand(
        tmp_path / "out", spec, LOCAL_RANK="0", IRIS_CACHE=str(tmp_path / "cache-{number}"), **nowhere
    )
    assert (first, second) == (70, 75)
    assert "error: an exchange between ranks failed (" in said
    assert "s3://bucket: its server does not answer" in why


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": None}, "error: MASTER_ADDR is not set, beside other variables of torchrun: start ranks with "),
        (
            {"RANK": None},
            "error: RANK is not set, beside other variables of torchrun: start ranks with torchrun, which ",
        ),
        ({"RANK": "x"}, "error: RANK is x, beside other variables of torchrun: start ranks with torchrun, which sets "),
        (
            {"LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "0,1"},
            "error: LOCAL_RANK is 2, but this machine shows 2 GPUs (CUDA_VISIBLE_DEVICES): start one rank a GPU",
        ),
        (
            {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"},
            "error: LOCAL_WORLD_SIZE is 2, but WORLD_SIZE is 3: start as many ranks on each machine",
        ),
    ],
)
def test_ranks_need_what_torchrun_gives_them(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(spec_of("add").model_dump_json())
    ((code, said),) = by_hand(tmp_path / "out", spec, 1, **changes)
    assert code == 2
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_a_stage_without_ranks_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("1", "8", "1", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "iris_core.publish", "--spec", "none", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: WORLD_SIZE is 8, but publish is one process: start it without torchrun, or unset WORLD_SIZE\n"
    )
