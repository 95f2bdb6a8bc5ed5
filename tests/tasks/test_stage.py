"""What stage tasks share, on a real Prefect server with real subprocesses."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
)
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogHandler
from prefect.serializers import JSONSerializer

from iris_core.common.errors import DataError, StageFailed
from iris_core.common.progress import Advance
from iris_core.config import Experiment, parse_experiment
from iris_core.store import Execution, Store
from iris_core.store.folders import EXECUTION
from tasks.stage import (
    Finished,
    Result,
    _ease,
    _eased,
    artifact_key,
    describe,
    log_file,
    perform,
    stage_task,
    watched_by,
)
from tests.iris_core.damage import DAMAGES, damage
from tests.prefect_server import task_run
from tests.stages.slow import SlowSpec

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server", "slow_stage")]
PLACE = "iteration-0/slow"


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return parse_experiment({"name": "e", "store": str(tmp_path), "model": {"path": "m"}, "data": {"path": "d"}})


@stage_task("slow")
def slow(experiment: Experiment, action: str, iteration: int | None) -> Result:
    return perform(SlowSpec(action=action), experiment, PLACE)


@flow
def one(experiment: Experiment, action: str) -> tuple[UUID, Finished | Exception]:
    """Runs the stage once; the flow run's id and what came of it."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    try:
        return context.flow_run.id, slow(experiment, action, 0)
    except Exception as error:
        return context.flow_run.id, error


def artifacts(flow_run: UUID) -> list[Artifact]:
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    with get_client(sync_client=True) as client:
        return client.read_artifacts(flow_run_filter=wanted)


def test_stage_runs_once_and_is_reused_then(experiment: Experiment, tmp_path: Path) -> None:
    store = Store(tmp_path, "e")
    first_run, first = one(experiment, "leave")
    second_run, second = one(experiment, "leave")
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert (first.reused, second.reused) == (False, True)
    assert first.metrics == second.metrics == {"answer": 42, "warnings": []}
    assert task_run(first_run).name == "slow · iteration 0"
    assert task_run(first_run).state_name == "Completed"
    assert task_run(second_run).state_name == "Reused"
    assert (first.folder / "tries").read_text().count("\n") == 1
    assert store.manifest(PLACE) == first.manifest()
    assert "doing leave" in log_file(store, PLACE).read_text()


def test_warnings_are_in_the_log_of_the_run_whether_it_worked_or_not(
    experiment: Experiment,
) -> None:
    for _ in range(2):  # works, then is reused
        run, _ = one(experiment, "warn")
        APILogHandler().flush()
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]), level=LogFilterLevel(ge_=logging.WARNING))
        with get_client(sync_client=True) as client:
            found = [log.message for log in client.read_logs(wanted)]
        assert found == [f"{PLACE}: mind <this>", f"{PLACE}: and [that]"]


def test_progress_becomes_an_artifact(experiment: Experiment) -> None:
    run, _ = one(experiment, "leave")
    (bar,) = artifacts(run)
    assert bar.key == "e-iteration-0-slow-progress"
    assert bar.data == 100.0
    assert bar.description == "slow: 2 of 2, loss 0.5"


def test_changed_output_runs_again(experiment: Experiment) -> None:
    _, first = one(experiment, "leave")
    assert isinstance(first, Finished)
    (first.folder / "tries").write_text("tampered with")
    _, second = one(experiment, "leave")
    assert isinstance(second, Finished)
    assert not second.reused


def test_error_that_a_retry_cannot_help_is_raised_at_once(experiment: Experiment, tmp_path: Path) -> None:
    run, error = one(experiment, "refuse")
    assert isinstance(error, DataError)
    assert task_run(run).run_count == 1
    assert task_run(run).state_name == "Failed"


def test_crash_is_not_repeated(experiment: Experiment) -> None:
    run, error = one(experiment, "crash")
    assert isinstance(error, StageFailed)
    assert task_run(run).run_count == 1


def test_lost_connection_is_tried_again(experiment: Experiment) -> None:
    run, finished = one(experiment, "reconnect")
    assert isinstance(finished, Finished)
    assert task_run(run).run_count == 2


def test_out_of_memory_is_tried_again_with_half_the_batch(experiment: Experiment) -> None:
    _, finished = one(experiment, "need")
    assert isinstance(finished, Finished)
    tries = (finished.folder / "tries").read_text().splitlines()
    halved = Execution(tokens_per_batch=100)
    assert tries == [repr(Execution()), repr(halved)]
    assert finished.manifest().spec["execution"] == halved.model_dump()
    assert finished.key == SlowSpec(action="need").key()


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_wish_for_a_smaller_batch_is_not_read(tmp_path: Path, kind: str) -> None:
    spec = SlowSpec(action="need")
    _ease(spec, tmp_path)
    assert _eased(spec, tmp_path).execution == Execution(tokens_per_batch=100)
    damage(tmp_path / EXECUTION, kind)
    assert _eased(spec, tmp_path).execution == Execution()
    _ease(spec, tmp_path)
    assert _eased(spec, tmp_path).execution == Execution(tokens_per_batch=100)


def test_watcher_sees_start_progress_and_end(experiment: Experiment) -> None:
    seen: list[tuple[object, ...]] = []

    class Watcher:
        def started(self, store: Store, place: str) -> None:
            assert store.home.name == experiment.name
            seen.append(("started", place))

        def progressed(self, place: str, event: Advance) -> None:
            seen.append((event.done, event.total))

        def noticed(self, place: str, text: str) -> None:
            seen.append(("noticed", place, text))

        def ended(self, store: Store, place: str, finished: Finished | None) -> None:
            assert store.home.name == experiment.name
            seen.append(("ended", finished and finished.reused))

    with watched_by(Watcher()):
        one(experiment, "leave")
        one(experiment, "leave")
        one(experiment, "refuse")
        one(experiment, "wait")
    assert seen == [
        *[("started", PLACE), (0, 2), (1, 2), (2, 2), ("ended", False)],
        ("ended", True),
        *[("started", PLACE), ("ended", None)],
        *[
            ("started", PLACE),
            ("noticed", PLACE, "waiting for the other"),
            (0, 2),
            (1, 2),
            (2, 2),
            ("ended", False),
        ],
    ]


def test_result_passes_through_json(experiment: Experiment) -> None:
    _, finished = one(experiment, "leave")
    serializer = JSONSerializer()
    assert serializer.loads(serializer.dumps(finished)) == finished


def test_artifact_keys_suit_prefect() -> None:
    assert artifact_key("My_run.2", "iteration-0/train") == "my-run-2-iteration-0-train"


def test_events_in_words() -> None:
    event = Advance(stage="train", done=3, total=40, loss=0.61234, tokens_per_second=812.3, benchmark="mmlu")
    assert describe(event) == ("3 of 40, loss 0.6123, tokens per second 812.3, benchmark mmlu")


def test_flow_process_imports_no_torch() -> None:
    code = "import sys, flows.iris, flows.evaluation; print('torch' in sys.modules, 'vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False False", done.stderr
