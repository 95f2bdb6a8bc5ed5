"""Launches of real processes: errors come back, and nothing that was started outlives the launch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from prefect.exceptions import TerminationSignal

from iris_core.common.errors import DataError, IrisError, OutOfMemoryError, StageFailed
from iris_core.common.intervals import Interval
from iris_core.common.progress import Advance, Notice
from iris_core.config import SchedulePart
from iris_core.execution import slots, supervision
from iris_core.execution.launch import launch, supervise
from iris_core.execution.supervision import LAUNCH_VARIABLE, how_ended
from iris_core.objectives.gap import Gap
from iris_core.objectives.order import Movement
from iris_core.pipeline.specs import ScheduleSpec
from iris_core.store import Execution
from tests.processes import wait_for, with_variable

ROOT = Path(__file__).parents[3]
SLOW = ROOT / "tests" / "stages" / "slow.py"
FAMILY_VARIABLE = "IRIS_TEST_FAMILY"  # survives what a launch does to the environment

LINES = 2000
TALK = f"""
from iris_core.common.progress import emit
for number in range({LINES}):
    print("a line of the log that says something", number)
    emit("progress", stage="talk", done=number, total={LINES})
emit("error", kind="DataError", message="the end", exit_code=2)
"""

pytestmark = pytest.mark.unit


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Labels every process of one test; none may be left when the test has ended."""
    name = str(tmp_path)
    monkeypatch.setenv(FAMILY_VARIABLE, name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield name
    for process in alive(name):
        process.kill()


def alive(family: str) -> list[psutil.Process]:
    return with_variable(FAMILY_VARIABLE, family)


def command(tmp_path: Path, action: str) -> list[str]:
    spec = tmp_path / "spec.json"
    spec.write_text(f'{{"action": "{action}"}}')
    return [sys.executable, str(SLOW), "--spec", str(spec), "--out", str(tmp_path / "out")]


def run(tmp_path: Path, action: str) -> tuple[IrisError | None, list[str]]:
    lines: list[str] = []
    error = supervise("slow", command(tmp_path, action), lambda event: None, lines.append)
    return error, lines


def schedule_spec() -> ScheduleSpec:
    gap = Gap(value=1.0, ess=8.0, pairs=16, confirmed=True)
    above = Interval(value=1.0, low=0.5, high=1.5)
    moved = Movement(training_margin=above, heldout_margin=above)
    return ScheduleSpec(schedule=SchedulePart(), iteration=0, iterations=2, order=2.0, gaps=[gap], movement=moved)


def test_real_stage_gives_its_manifest_and_log(tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = launch(schedule_spec(), tmp_path, on_log=lines.append)
    assert manifest.metrics["next_order"] == 2.0
    assert manifest.artifact("schedule").path.exists()
    assert any("schedule is complete" in line for line in lines)
    assert not list(tmp_path.glob(".request-*"))


def test_a_stage_waits_for_its_gpu_and_others_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "FOLDER", tmp_path / "gpus")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    events: list[Advance | Notice] = []
    lines: list[str] = []
    with ExitStack() as kept, ExitStack() as released:
        kept.enter_context(slots.held(["0"], 1, "train of demo", print))
        released.enter_context(slots.held(["1"], 1, "generate of demo", print))
        assert launch(schedule_spec(), tmp_path / "without").metrics["next_order"] == 2.0
        monkeypatch.setattr(ScheduleSpec, "uses_gpus", True)

        def on_progress(event: Advance | Notice) -> None:
            events.append(event)
            released.close()

        one = schedule_spec().model_copy(update={"execution": Execution(gpus_per_node=1)})
        launch(one, tmp_path / "with", on_progress, lines.append)
    user = f"(process {os.getpid()})"
    said = f"GPU 0 is in use by train of demo {user}; GPU 1 is in use by generate of demo {user}: waiting"
    assert events == [Notice(message=said)]
    assert lines[0] == said


def test_error_is_rebuilt(tmp_path: Path, family: str) -> None:
    error, lines = run(tmp_path, "refuse")
    assert isinstance(error, DataError)
    assert str(error) == "data.path: no rows: give some"
    assert not error.retryable
    assert "doing refuse" in lines


def test_error_of_launch_is_raised(tmp_path: Path) -> None:
    launch(schedule_spec(), tmp_path)
    other = schedule_spec().model_copy(update={"order": 1.5})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(IrisError, match="unfinished work of another spec"):
        launch(other, tmp_path)


def test_memory_exhausted_may_be_tried_again(tmp_path: Path, family: str) -> None:
    error, _ = run(tmp_path, "need")
    assert isinstance(error, OutOfMemoryError)
    assert error.retryable


def test_crash_is_not_tried_again_and_its_traceback_is_in_the_log(tmp_path: Path, family: str) -> None:
    error, lines = run(tmp_path, "crash")
    assert isinstance(error, StageFailed)
    assert "ZeroDivisionError: of a bug" in str(error)
    assert not error.retryable
    assert any("Traceback" in line for line in lines)


def test_children_end_with_a_stage_that_dies(tmp_path: Path, family: str) -> None:
    error, _ = run(tmp_path, "die")
    assert isinstance(error, StageFailed)
    assert "SIGABRT" in str(error)
    assert error.retryable
    assert not alive(family)


@pytest.mark.parametrize("listener", ["log", "progress"])
def test_a_listener_that_fails_is_named_once_and_the_stage_goes_on(
    family: str, caplog: pytest.LogCaptureFixture, listener: str
) -> None:
    """The stage writes more than a pipe holds: it would block if nothing read on."""
    calls: dict[str, list[object]] = {"log": [], "progress": []}

    def called(name: str, value: object) -> None:
        calls[name].append(value)
        if name == listener and len(calls[name]) in (5, 7):
            raise OSError(28, "No space left on device")

    error = supervise(
        "talk",
        [sys.executable, "-c", TALK],
        lambda event: called("progress", event),
        lambda line: called("log", line),
    )
    assert isinstance(error, DataError)
    assert str(error) == "the end"
    assert [len(each) for each in calls.values()] == [LINES, LINES]
    (message,) = caplog.messages
    assert message.startswith(f"the {listener} of talk is incomplete: OSError: [Errno 28] No space")


MALFORMED = [
    b'{"event": "progress", "sta',
    b"",
    b"null",
    b"[1]",
    b'{"event": "progress", "stage": "x", "done": "1", "total": 2}',
    b'{"event": "progress", "stage": "x", "done": 1}',
    b'{"event": "error", "kind": "DataError"}',
    b'{"event": "another"}',
    b"[" * 5000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_event_goes_to_the_log(family: str, line: bytes) -> None:
    code = f"import os; open(os.environ['IRIS_PROGRESS'], 'wb').write({line!r} + b'\\n')\n{TALK}"
    lines: list[str] = []
    events: list[object] = []
    error = supervise("talk", [sys.executable, "-c", code], events.append, lines.append)
    assert str(error) == "the end"
    assert line.decode(errors="replace") in lines
    assert len(events) == LINES


def test_an_error_of_an_unknown_kind_is_a_crash(family: str) -> None:
    code = "from iris_core.common.progress import emit; emit('error', kind='first_line', message='of a bug')"
    error = supervise("talk", [sys.executable, "-c", code], lambda event: None, lambda line: None)
    assert isinstance(error, StageFailed)
    assert "first_line: of a bug" in str(error)


def test_a_launch_leaves_no_file_of_its_own(tmp_path: Path, family: str) -> None:
    """Not even if everything is killed at once: its request lies in memory."""
    launch(schedule_spec(), tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".spec.json.123").write_text("of a stage that was killed")
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "half").write_text("a unit")
    seen: list[set[str]] = []
    launch(schedule_spec(), tmp_path, on_log=lambda line: seen.append(names(tmp_path)))
    lasting = {".lock", ".digests", "spec.json", "schedule.json", "manifest.json"}
    assert names(tmp_path) == lasting
    assert all(not name.startswith(".request") for found in seen for name in found)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_finished_stage_leaves_behind_is_killed(tmp_path: Path, family: str) -> None:
    error, _ = run(tmp_path, "leave")
    assert error is None
    assert not alive(family)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, TerminationSignal])
def test_exception_in_the_parent_ends_every_descendant(
    tmp_path: Path,
    family: str,
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
) -> None:
    monkeypatch.setattr(supervision, "GRACE_S", 1.0)  # one descendant ignores SIGTERM
    seen = 0

    def interrupt(event: object) -> None:
        nonlocal seen
        seen = len(alive(family))
        raise interruption(signal.SIGTERM)

    with pytest.raises(interruption):
        supervise("slow", command(tmp_path, "endless"), interrupt, lambda line: None)
    assert seen == 5  # supervisor, stage and its three children, two of them in sessions of their own
    assert not alive(family)


def test_death_of_the_parent_ends_every_descendant(tmp_path: Path, family: str) -> None:
    """The parent cannot handle SIGKILL: the supervisor must notice."""
    code = (
        "import sys; from iris_core.execution.launch import supervise\n"
        "supervise('slow', sys.argv[1:], lambda event: print(event, flush=True), lambda line: None)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *command(tmp_path, "endless")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert "progress" in parent.stdout.readline()
    assert len(alive(family)) == 6
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(family))


def test_each_launch_has_a_label_of_its_own(tmp_path: Path, family: str) -> None:
    """Ending one launch leaves another alone."""
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"],
        env={**os.environ, LAUNCH_VARIABLE: "another"},
    )
    run(tmp_path, "refuse")
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_stage_has_the_settings_for_cpus_and_the_users_own_before_them(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    lines: list[str] = []
    show = "import os; print(*(f'{k}={v}' for k, v in os.environ.items()), sep='\\n')"
    assert supervise("show", [sys.executable, "-c", show], lambda event: None, lines.append) is None
    found = dict(line.partition("=")[::2] for line in lines)
    assert found["GOMP_SPINCOUNT"] == "7"
    assert found["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == found["LRU_CACHE_CAPACITY"] == "64"
    assert "glibc.malloc.tcache_count=0" in found["GLIBC_TUNABLES"].split(":")


def test_exit_codes_in_words() -> None:
    """Real-time signals have a number only."""
    assert [how_ended(code) for code in (3, -9, -35)] == [
        "ended with exit code 3",
        "was killed by SIGKILL",
        "was killed by signal 35",
    ]
