"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from iris_core.store.units import Units
from iris_core.training.checkpoints import checkpoints, path_of
from iris_core.training.saving import Saver
from iris_core.training.states import load_optimizer, load_weights

pytestmark = pytest.mark.unit


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    return Saver(Units(tmp_path, "key"), tmp_path / "work", overlapping=True)


def stepped(steps: int) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
    optimizer.zero_grad()
    model(torch.ones(3)).square().sum().backward()
    optimizer.step()


def test_steps_that_are_taken_meanwhile_are_not_in_it(saver):
    model, optimizer = stepped(2)
    go = threading.Event()
    with saver:
        saver.thread.submit(go.wait)  # the writing begins after two more steps
        saver.save(2, model, optimizer, {"history.jsonl": "two"})
        step(model, optimizer), step(model, optimizer)
        assert not checkpoints(saver.work)
        go.set()
    again, fresh = stepped(0)
    load_weights(path_of(saver.work, 2), again)
    load_optimizer(path_of(saver.work, 2), again, fresh)
    expected, states = stepped(2)
    assert torch.equal(again.weight, expected.weight)
    assert fresh.state_dict()["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    for number, state in states.state_dict()["state"].items():
        for name, tensor in state.items():
            assert torch.equal(fresh.state_dict()["state"][number][name], tensor)
    step(again, fresh), step(again, fresh)
    assert torch.equal(again.weight, model.weight)


def test_only_the_newest_two_are_kept(saver):
    with saver:
        for number in range(1, 5):
            saver.save(number, *stepped(number), {})
    assert checkpoints(saver.work) == [path_of(saver.work, 3), path_of(saver.work, 4)]


def fail(saver: Saver, while_training: type[BaseException] | None = None) -> None:
    """Training whose checkpoint cannot be written, which is found after its last step."""
    go = threading.Event()
    with saver:
        saver.thread.submit(go.wait)
        saver.save(1, *stepped(1), {"no/folder": ""})
        saver.check()
        go.set()
        if while_training:
            raise while_training


def test_what_goes_wrong_meanwhile_ends_training(saver):
    with pytest.raises(FileNotFoundError, match="no/folder"):
        fail(saver)
    assert not checkpoints(saver.work)
    with pytest.raises(FileNotFoundError, match="no/folder"):
        saver.check()


def test_an_error_of_training_goes_before_that_of_a_checkpoint(saver):
    with pytest.raises(KeyboardInterrupt):
        fail(saver, KeyboardInterrupt)
