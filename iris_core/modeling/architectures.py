"""Proves on a small random model of the same class which rows a model computes right: packed, separate, or none.

Log-probs and all gradients are compared in fp32 with plain forwards of the class's own eager attention, one per
sequence. Packed rows are fast. Separate sequences are right for every causal model. Other models are refused. `prepare`
does this before any long work.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from iris_core.common.errors import ModelError, first_line
from iris_core.config import LoraPart, Packing
from iris_core.data.packing import Group, build_row
from iris_core.modeling import dropout, loading, tiny
from iris_core.modeling.lora import not_adaptable
from iris_core.modeling.patches.norm_rotary import fuse_norm_rotary, restored_rotary
from iris_core.modeling.scoring import response_logprobs

VALUE_TOLERANCE = 2e-4  # nats per response, relative above 1
GRADIENT_TOLERANCE = 2e-2  # of the norm of a parameter's gradient: rounding may switch a ReLU with an input near 0
FLOOR = 1e-5  # of the norm of the largest gradient

SHORT = [
    Group([15, 19, 31, 13, 17, 20], ([18], [41, 22, 15, 16, 12])),
    Group([14], ([39, 10, 12, 51], [30, 31])),
]  # within every window of `iris_core.modeling.tiny`
LONG = [*SHORT, Group([*range(20, 32)], ([*range(40, 49)], [*range(33, 47)]))]  # beyond these windows

Values = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Proof:
    """For each kind of rows, why a model does not compute it right; None where it does.

    Attributes:
        packed: packed rows.
        short: packed rows with no prompt and response longer than a window (see `iris_core.modeling.tiny.WINDOWS`).
        separate: separate sequences.
    """

    packed: str | None
    short: str | None
    separate: str | None


def probe(
    config: PreTrainedConfig,
    lora: LoraPart | None = None,
    checkpointing: bool = False,
    trust_remote_code: bool = False,
) -> Proof:
    """Finds out which rows a model with this configuration computes right.

    Args:
        config: of the model, as loaded.
        lora: the adapter that is trained; None: all weights are trained.
        checkpointing: whether training recomputes activations.
        trust_remote_code: run code from the model's folder.

    Raises:
        ModelError: transformers has no such causal model, or PEFT no such adapter for it.
    """
    if config.is_encoder_decoder:
        return Proof(*3 * ("it is an encoder-decoder model, and self-play needs a decoder",))
    attention = loading.attention_of(config, trust_remote_code)
    with _isolated():
        try:
            pair = _models(config, attention, trust_remote_code)
        except Exception as error:  # code of any model class
            return Proof(*3 * (_failure(error),))
        if lora is not None:
            pair = _adapted(pair, lora)
        separate = _problem(pair, "separate", LONG, checkpointing)
        if separate or attention == "eager":
            reason = separate or "its layers cannot be told which tokens belong together"
            return Proof(reason, reason, separate)
        packed = _problem(pair, "packed", LONG, checkpointing)
        return Proof(packed, packed and _problem(pair, "packed", SHORT, checkpointing), None)


class _ModelPair:
    """The same weights twice: loaded as for training, and with the class's own eager attention."""

    def __init__(self, model: Any, reference: Any):
        self.model, self.reference = model, reference
        self._expected: dict[int, Values] = {}

    def expected(self, groups: list[Group]) -> Values:
        """Log-probs and gradients by plain forwards of the reference."""
        if len(groups) not in self._expected:
            self._expected[len(groups)] = _differentiate(self.reference, lambda model: plain_logprobs(model, groups))
        return self._expected[len(groups)]


def _models(config: PreTrainedConfig, attention: str, trust_remote_code: bool) -> _ModelPair:
    """The first small variant of `config` that runs."""
    errors = []
    for small in tiny.variants(config):
        try:
            reference = tiny.build(small, "eager", trust_remote_code)
            weights = copy.deepcopy(reference.state_dict())
            plain_logprobs(reference, SHORT)
        except Exception as error:
            errors.append(error)
            continue
        if not all(map(torch.equal, weights.values(), reference.state_dict().values())):
            raise ModelError("its weights change in a forward pass")
        noiseless = copy.deepcopy(small)
        dropout.disable(noiseless)
        model = tiny.build(noiseless, attention, trust_remote_code)
        model.load_state_dict(weights)
        dropout.disable_layers(model)
        fuse_norm_rotary(model)
        return _ModelPair(model, reference)
    raise errors[0]


def _adapted(pair: _ModelPair, lora: LoraPart) -> _ModelPair:
    """Both models with the same adapter; the reference keeps PEFT's own forward."""
    from peft import LoraConfig, get_peft_model

    from iris_core.modeling.patches.lora import fuse_lora

    settings = {"r": 2, "target_modules": lora.targets, "task_type": "CAUSAL_LM"}
    try:
        reference, model = (
            get_peft_model(each, LoraConfig(**settings)).eval() for each in (pair.reference, pair.model)
        )
        plain_logprobs(reference, SHORT)
    except Exception as error:
        raise not_adaptable(pair.model, lora.targets, error) from error
    generator = torch.Generator().manual_seed(1)
    for name, parameter in reference.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    model.load_state_dict(reference.state_dict())
    fuse_lora(model)
    return _ModelPair(model, reference)


def _problem(pair: _ModelPair, packing: Packing, groups: list[Group], checkpointing: bool) -> str | None:
    """What is wrong with rows of this kind; None if nothing is."""
    try:
        if not _is_causal(pair.reference):
            return "it is not causal: a token sees later ones"
        if problem := _compare(pair, packing, groups):
            return problem
        if checkpointing and (problem := _problem_in_training_mode(pair, packing, groups)):
            return f"{problem}: set training.gradient_checkpointing to false"
    except Exception as error:
        return _failure(error)
    return None


def _problem_in_training_mode(pair: _ModelPair, packing: Packing, groups: list[Group]) -> str | None:
    """What is wrong where activations are recomputed, which layers do only in training mode."""
    if not pair.model.supports_gradient_checkpointing:
        return "its class cannot recompute activations"
    before = torch.get_rng_state()
    with _checkpointed(pair.model):
        problem = _compare(pair, packing, groups)
    draws = not torch.equal(before, torch.get_rng_state())
    draws_only = hasattr(pair.model.config, "layerdrop")  # its rate is 0, so the numbers drawn change nothing
    if draws and not draws_only:
        return "it draws random numbers in training mode"
    return problem and f"with recomputed activations, {problem}"


def _compare(pair: _ModelPair, packing: Packing, groups: list[Group]) -> str | None:
    row = build_row(groups, range(len(groups)), packing)
    found = _differentiate(pair.model, lambda model: response_logprobs(model, row))
    return difference(found, pair.expected(groups))


def plain_logprobs(model: Any, groups: list[Group]) -> Tensor:
    """Log-probs of responses by one plain causal forward each, from the model's own logits; [groups, responses].

    Args:
        model: a causal language model, with or without an adapter.
        groups: all with the same number of responses.
    """

    def logprob(prompt: list[int], response: list[int]) -> Tensor:
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        sources = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        logprobs = logits[sources].float().log_softmax(dim=-1)
        return logprobs.gather(1, torch.tensor(response)[:, None]).sum()

    return torch.stack([torch.stack([logprob(group.prompt, ids) for ids in group.responses]) for group in groups])


def difference(found: Values, expected: Values) -> str | None:
    """What differs by more than fp32 rounding between two sets of log-probs and gradients; None if nothing does."""
    off = (found[0] - expected[0]).abs().max()
    if not off <= VALUE_TOLERANCE * max(1, expected[0].abs().max()):
        return f"log-probabilities are off by up to {off:.2g} nats"
    floor = FLOOR * max(gradient.norm() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        off = (found[1].get(name, torch.zeros_like(gradient)) - gradient).norm()
        if not off <= max(GRADIENT_TOLERANCE * gradient.norm(), floor):
            return f"the gradient of {name} is off by {off / gradient.norm():.1%}"
    return None


def _differentiate(model: Any, forward: Callable[[Any], Tensor]) -> Values:
    """Log-probs, and the gradient of a weighted sum of them for each trained parameter."""
    model.zero_grad(set_to_none=True)
    logprobs = forward(model)
    mixture = torch.linspace(-1, 1.5, logprobs.numel()).view(logprobs.shape)
    (logprobs * mixture).sum().backward()
    named = model.named_parameters()
    return logprobs.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    ids = torch.tensor([[*SHORT[0].prompt, *SHORT[0].responses[1]]])
    whole, start = (model(input_ids=part, use_cache=False).logits for part in (ids, ids[:, :4]))
    return bool(torch.allclose(whole[:, :4], start, rtol=1e-3, atol=1e-4))


@contextmanager
def _checkpointed(model: PreTrainedModel) -> Iterator[None]:
    model.train()
    model.gradient_checkpointing_enable()
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


@contextmanager
def _isolated() -> Iterator[None]:
    """Keeps the process's random state, patches and threads, and hides transformers' warnings about small models.

    Gradients are enabled, also where the caller is in inference mode. One thread computes: models are so small that
    several threads would wait for each other.
    """
    level, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        with restored_rotary(), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(0)
            yield
    finally:
        transformers.logging.set_verbosity(level)
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)


def _failure(error: Exception) -> str:
    if isinstance(error, ModelError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"
