"""The log-prob kernel against log_softmax on whole logits."""

import pytest
import torch

from iris_core.modeling.kernels import logprobs
from iris_core.modeling.kernels.logprobs import token_logprobs

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("tile", [(1, 7), (3, 16), (8, 50), (100, 100)])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 2.0), (0.5, 1.5)])
def test_equals_log_softmax_in_value_and_gradient(train_head, tile, scale, softcap, monkeypatch):
    monkeypatch.setattr(logprobs, "CPU_TILE", tile)  # of 8 tokens and 50 vocabulary entries
    torch.manual_seed(0)
    hidden = torch.randn(8, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=train_head)
    targets = torch.randint(0, 50, (8,))
    leaves = (hidden, weight) if train_head else (hidden,)
    logits = scale * hidden @ weight.T
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    slow = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    fast = token_logprobs(hidden, weight, targets, scale, softcap)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    grad_output = torch.randn(8)
    for one, other in zip(
        torch.autograd.grad(fast @ grad_output, leaves),
        torch.autograd.grad(slow @ grad_output, leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_finite_differences_agree():
    torch.manual_seed(0)
    hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight, targets = torch.randn(9, 6, dtype=torch.float64), torch.tensor([0, 3, 8, 3])
    step = 1e-2
    gradient = torch.autograd.grad(token_logprobs(hidden, weight, targets).sum(), hidden)[0]
    moved = hidden.detach().clone()
    moved[2, 1] += step
    other = hidden.detach().clone()
    other[2, 1] -= step
    difference = (token_logprobs(moved, weight, targets) - token_logprobs(other, weight, targets)).sum() / (2 * step)
    assert gradient[2, 1].item() == pytest.approx(difference.item(), abs=1e-3)


def test_no_tokens_no_logprobs():
    empty = token_logprobs(torch.randn(0, 4), torch.randn(5, 4), torch.empty(0, dtype=torch.long))
    assert empty.shape == (0,)


def test_logits_far_apart_do_not_overflow_whichever_tile_they_are_in(monkeypatch):
    """Logits 0, 300, -300, 200: log-probs are the differences to 300; the largest one is not in the first tile."""
    monkeypatch.setattr(logprobs, "CPU_TILE", (4, 1))
    hidden, weight = (
        torch.ones(4, 1, requires_grad=True),
        torch.tensor([[0.0], [300], [-300], [200]]),
    )
    found = token_logprobs(hidden, weight, torch.arange(4))
    assert found.tolist() == [-300, 0, -600, -100]
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert gradient.squeeze().tolist() == [-300, 0, -600, -100]  # W_target − W_most likely


def test_autocast_means_its_dtype_forward_and_backward():
    """Logits near 20 are rounded by up to 1/16: log Σ e^z of rounded logits would not fit exact ones in backward."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 16) * 3, torch.randn(50, 16)
    targets, found = torch.randint(0, 50, (8,)), []
    for dtype, autocast in ((torch.float32, True), (torch.bfloat16, False)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logprobs = token_logprobs(*leaves, targets)
        found.append([logprobs, *torch.autograd.grad(logprobs.sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=0, atol=0)
