"""No process outlives the deaths of parent, supervisor and stage, in any combination; vLLM's processes are included.

The tests follow what they saw below the parent, not labels, which a process can lack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import psutil
import pytest

from iris_core.config import parse_experiment
from iris_core.evaluation.folder import benchmark_folder
from iris_core.execution import supervision
from iris_core.pipeline import plan
from iris_core.prepare import prepare
from iris_core.store import Spec, run_stage
from tests.processes import command_line, wait_for
from tests.stages.slow import STRAY

ROOT = Path(__file__).parents[3]
SLOW = ROOT / "tests" / "stages" / "slow.py"
PARENT = """
import signal, sys
from iris_core.execution.launch import supervise
signal.signal(signal.SIGINT, signal.default_int_handler)  # these may be ignored where the tests run
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def say(what): print(f"{what}\\n", end="")  # from two threads, and yet in whole lines
error = supervise("stage", sys.argv[1:], say, say)
say(f"{type(error).__name__} {error is not None and error.retryable}")
"""
ROLES = ("parent", "supervisor", "stage")
START_S, END_S = 400.0, 300.0

Signals = dict[str, signal.Signals]
Start = Callable[[list[str]], "Family"]


class Family:
    """A process that launches a stage, and all that was ever seen below it."""

    def __init__(self, command: list[str], log: Path):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, *command], stdout=file, stderr=subprocess.STDOUT
            )
        self.parent = psutil.Process(self.process.pid)
        self.seen: dict[psutil.Process, str] = {}

    def look(self) -> dict[psutil.Process, str]:
        """All processes seen until now, with their command lines or titles."""
        with suppress(psutil.NoSuchProcess):
            for process in [self.parent, *self.parent.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    self.seen[process] = " ".join(process.cmdline()).strip()
        return self.seen

    def named(self, title: str) -> list[psutil.Process]:
        return [process for process, name in self.look().items() if name == title]

    def role(self, name: str) -> psutil.Process:
        """The process of that role; each is the first child of the one before, which may adopt others."""
        process = self.parent
        for _ in range(ROLES.index(name)):
            process = min(process.children(), key=psutil.Process.create_time)
        return process

    def left(self) -> list[psutil.Process]:
        return [process for process in self.seen if supervision.lives(process)]

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Waits for `condition`, while the parent lives."""
        until = time.monotonic() + START_S
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < until, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def wait_for_end(self) -> None:
        """Waits until all have ended."""
        until = time.monotonic() + END_S
        while left := self.left():
            assert time.monotonic() < until, {process: self.seen[process] for process in left}
            time.sleep(0.1)

    def strike(self, deaths: Signals) -> None:
        """Sends each role its signal, all at once."""
        targets = [(self.role(name), number) for name, number in deaths.items()]
        for process, number in targets:
            supervision.send([process], number)

    def end(self) -> None:
        supervision.send(self.left(), signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Starts a family; none of it is left when the test has ended."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # as on GPUs
    families: list[Family] = []

    def start_one(command: list[str]) -> Family:
        families.append(Family([sys.executable, *command], tmp_path / "log"))
        return families[-1]

    yield start_one
    for family in families:
        family.end()


def killed(*names: str) -> Signals:
    return dict.fromkeys(names, signal.SIGKILL)


EVERY_DEATH = [
    *(killed(*names) for count in (1, 2, 3) for names in combinations(ROLES, count)),
    {"stage": signal.SIGTERM},
    {"supervisor": signal.SIGTERM},
    {"parent": signal.SIGTERM},
    {"parent": signal.SIGINT},
    {"parent": signal.SIGHUP},
]


def title(deaths: Signals) -> str:
    return "-".join(f"{name}-{number.name}" for name, number in deaths.items())


@pytest.mark.unit
@pytest.mark.parametrize("deaths", EVERY_DEATH, ids=title)
def test_no_death_leaves_a_process(deaths: Signals, tmp_path: Path, start: Start) -> None:
    """Engines in sessions of their own, with titles that hide their environment; and two orphans in other sessions."""
    spec = tmp_path / "spec.json"
    spec.write_text('{"action": "engines"}')
    family = start([str(SLOW), "--spec", str(spec), "--out", str(tmp_path / "out")])
    count = {"VLLM::EngineCore": 2, "VLLM::Worker": 2, "titled": 1, " ".join(STRAY): 1}
    family.wait_until(lambda: all(len(family.named(title)) == n for title, n in count.items()))
    assert not any(process.environ() for process in family.named("VLLM::Worker"))
    family.strike(deaths)
    if deaths.get("supervisor") == signal.SIGKILL:  # nothing is left that knows of this process
        supervision.send(family.named(" ".join(STRAY)), signal.SIGKILL)
        if "parent" in deaths:  # nor of this one
            supervision.send(family.named("titled"), signal.SIGKILL)
    family.wait_for_end()


@pytest.fixture(scope="module")
def specs(tiny_model: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spec]:
    """Long work for vLLM: sampling, and an evaluation."""
    content = {
        "name": "test",
        "model": {"path": str(tiny_model), "dtype": "float32"},
        "data": {"path": str(pairs_file), "heldout": 4},
        "generation": {"backend": "vllm", "max_new_tokens": 500, "shard_size": 1},
        "evaluation": {
            "benchmarks": ["winogrande", "gsm8k"],
            "data_dir": "miniature",
            "backend": "vllm",
            "max_gen_tokens": 2000,
        },
    }
    experiment = parse_experiment(content)
    folder = tmp_path_factory.mktemp("prepare")
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(experiment), folder, prepare))
    return {
        "generate": plan.generate_spec(experiment, prepared, prepared.start(experiment)),
        "evaluate": plan.evaluate_spec(
            experiment, prepared, prepared.initial, benchmark_folder(experiment.evaluation.data_dir)
        ),
    }


@pytest.mark.integration
@pytest.mark.parametrize(
    ("stage", "unit", "deaths"),
    [
        ("generate", "responses/shard-*", killed("stage")),
        ("generate", None, killed("parent")),  # while the engine loads
        ("generate", "responses/shard-*", killed("parent", "stage")),
        ("generate", "responses/shard-*", {"parent": signal.SIGINT}),
        ("evaluate", "scores/*.json", killed("stage")),
    ],
    ids=["stage-sampling", "parent-loading", "both-sampling", "interrupt-sampling", "evaluation"],
)
def test_no_death_leaves_vllm(
    stage: str,
    unit: str | None,
    deaths: Signals,
    specs: dict[str, Spec],
    tmp_path: Path,
    start: Start,
) -> None:
    pytest.importorskip("vllm")
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(specs[stage].model_dump_json())
    command = ["-m", f"iris_core.{stage}", "--spec", str(spec), "--out", str(out)]
    family = start(command)
    family.wait_until(lambda: family.named("VLLM::EngineCore"))
    if unit is not None:
        family.wait_until(lambda: any(out.glob(unit)) and family.look())
    family.strike(deaths)
    family.wait_for_end()
    assert not (out / "manifest.json").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("stage", "unit"),
    [("generate", "responses/shard-*"), ("evaluate", None)],
    ids=["sampling", "loading"],
)
def test_a_stage_ends_with_its_engine_and_is_retryable(
    stage: str, unit: str | None, specs: dict[str, Spec], tmp_path: Path, start: Start
) -> None:
    """Only the engine is killed, as by the kernel when memory runs out; vLLM's client would wait for it forever."""
    pytest.importorskip("vllm")
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(specs[stage].model_dump_json())
    family = start(["-m", f"iris_core.{stage}", "--spec", str(spec), "--out", str(out)])
    family.wait_until(lambda: family.named("VLLM::EngineCore"))
    if unit is not None:
        family.wait_until(lambda: any(out.glob(unit)) and family.look())
    supervision.send(family.named("VLLM::EngineCore"), signal.SIGKILL)
    family.wait_for_end()
    lines = family.log.read_text().splitlines()
    said = f"error: {stage}: vLLM's engine was killed by SIGKILL: run again to resume"
    assert [line for line in lines if line.startswith("error: ")] == [said]
    assert "StageFailed True" in lines
    assert not (out / "manifest.json").exists()


IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(1000)"


@pytest.mark.unit
def test_termination_waits_for_the_end_or_its_timeout() -> None:
    """A zombie has ended: the parent of a process that was killed may not have asked for its exit code."""
    stubborn = subprocess.Popen([sys.executable, "-c", IGNORES], stdout=subprocess.PIPE)
    obedient = subprocess.Popen(["sleep", "1000"])
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    both = [psutil.Process(each.pid) for each in (stubborn, obedient)]
    try:
        supervision.terminate(both[1:], timeout_s=60)
        assert both[1].status() == psutil.STATUS_ZOMBIE
        supervision.terminate(both, timeout_s=0.5)
        assert [supervision.lives(each) for each in both] == [True, False]
        stubborn.kill()
        supervision.terminate(both, timeout_s=60)
        assert not any(map(supervision.lives, both))
    finally:
        for each in (stubborn, obedient):
            each.kill()
            each.wait()
    assert supervision.command_line(both[0]) == []


@pytest.mark.unit
def test_supervisors_are_told_from_what_they_started() -> None:
    label = supervision.Label("LABEL", "supervised")
    supervisor = supervision.start("service", ["sleep", "1000"], {}, subprocess.DEVNULL, label)
    try:
        wait_for(lambda: "sleep 1000" in map(command_line, label.processes()))  # a fork looks like its parent at first
        found = supervision.supervisors(label.processes())
        assert {each.pid: name for each, name in found.items()} == {supervisor.pid: "service"}
    finally:
        supervision.end(supervisor, label)
    assert label.processes() == []


@pytest.mark.unit
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the environment of other users' processes")
def test_a_label_finds_no_process_of_another_user() -> None:
    own, other = (
        subprocess.Popen(["sleep", "1000"], env={"LABEL": "mine"}, cwd="/", user=user) for user in (None, 65534)
    )
    try:
        assert [each.pid for each in supervision.Label("LABEL", "mine").processes()] == [own.pid]
    finally:
        for each in (own, other):
            each.kill()
            each.wait()
