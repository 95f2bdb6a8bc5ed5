"""Update rules and the learning rate's course, by values."""

import pytest
import torch

from iris_core.training.optimizers import RMSprop, learning_rate_share

pytestmark = pytest.mark.unit


def stepped(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, steps: int) -> None:
    for step in range(steps):
        weight.grad = torch.tensor([1.0, -3.0]) / (step + 1)
        optimizer.step()


def test_decay_by_hand():
    """lr .1, decay .5: 2·(1 − .05) = 1.9 and −1·.95; then RMSprop's first step, ±lr·g/(√(.01 g²) + ε) = ±1."""
    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    stepped(RMSprop([weight], lr=0.1, weight_decay=0.5), weight, 1)
    assert weight.tolist() == pytest.approx([1.9 - 1, -0.95 + 1], abs=1e-6)


@pytest.mark.parametrize("ours", [True, False])
def test_decay_does_not_depend_on_the_gradient(ours):
    """With weights decayed by hand before each of torch's steps, both are the same; torch's own decay is not."""
    start = torch.tensor([2.0, -1.0])
    found, expected = (torch.nn.Parameter(start.clone()) for _ in range(2))
    kind = RMSprop if ours else torch.optim.RMSprop
    optimizer, plain = kind([found], lr=0.1, weight_decay=0.5), torch.optim.RMSprop([expected], 0.1)
    for step in range(3):
        found.grad = torch.tensor([1.0, -3.0]) / (step + 1)
        optimizer.step()
        expected.data *= 0.95
        expected.grad = found.grad.clone()
        plain.step()
    assert torch.allclose(found, expected) == ours


def test_decay_of_each_group_survives_a_checkpoint():
    weights = [torch.nn.Parameter(torch.tensor([2.0, -1.0])) for _ in range(2)]
    groups = [
        {"params": [weights[0]], "weight_decay": 0.5},
        {"params": [weights[1]], "weight_decay": 0.0},
    ]
    optimizer = RMSprop(groups, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones(2)
    optimizer.step()
    assert (weights[1] - weights[0]).tolist() == pytest.approx([0.1, -0.05], abs=1e-6)
    resumed = RMSprop([{"params": [weight]} for weight in weights], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["decoupled_decay"] for group in resumed.param_groups] == [0.5, 0.0]
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.0, 0.0]


def test_the_learning_rate_by_numbers():
    """20 steps, a tenth of them warm-up: ⅓, ⅔, 1, then 17/18 … 1/18."""
    linear = [learning_rate_share(step, 20, 0.1, "linear") for step in range(20)]
    assert linear[:4] == pytest.approx([1 / 3, 2 / 3, 1, 17 / 18])
    assert linear[-1] == pytest.approx(1 / 18)
    cosine = [learning_rate_share(step, 20, 0.1, "cosine") for step in range(20)]
    assert cosine[11] == pytest.approx(0.5)
    assert [learning_rate_share(step, 5, 0.4, "constant") for step in range(5)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1]
    )


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_no_step_has_a_learning_rate_of_0(kind, warmup):
    for steps in (1, 2, 3, 10, 11, 1000):
        shares = [learning_rate_share(step, steps, warmup, kind) for step in range(steps + 1)]
        assert all(0 < share <= 1 for share in shares)
