"""The harness's tasks build their requests without a progress bar."""

import inspect

import lm_eval.api.task
import pytest

from iris_core.modeling.patches.harness_bars import hidden_task_bars

pytestmark = pytest.mark.unit


def test_a_task_shows_a_bar_outside_only(capsys: pytest.CaptureFixture[str]) -> None:
    with hidden_task_bars():
        assert list(lm_eval.api.task.tqdm(range(3), total=3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert list(lm_eval.api.task.tqdm(range(3), total=3)) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err


def test_the_harness_still_shows_one() -> None:
    source = inspect.getsource(lm_eval.api.task.Task.build_all_requests)
    assert "in tqdm(" in source, "the patch can go"
