"""Whether rows of self-play mean the same to a model as plain forwards: found out on a small random model of its own kind.

Values and every gradient are compared in fp32 with the class's own eager attention, one forward a sequence. `prepare` asks
before anything heavy. Packed rows are fast; separate sequences are right for every causal model; what neither is, is refused.
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
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from iris_core.common.errors import ModelError, first_line
from iris_core.config import LoraPart
from iris_core.config.experiment import Packing
from iris_core.data.packing import Group, build_row
from iris_core.modeling import dropout, loading, tiny
from iris_core.modeling.patches.lora import fuse_lora
from iris_core.modeling.patches.norm_rotary import fuse_norm_rotary, restored_rotary
from iris_core.modeling.scoring import response_logprobs

VALUE_TOLERANCE = 2e-4  # nats a response, relative above 1
# of the norm of a parameter's gradient: a rectifier at its kink may switch by rounding
GRADIENT_TOLERANCE = 2e-2
FLOOR = 1e-5  # of the norm of the largest one

SHORT = [
    Group([15, 19, 31, 13, 17, 20], ([18], [41, 22, 15, 16, 12])),
    Group([14], ([39, 10, 12, 51], [30, 31])),
]  # within every window of `iris_core.modeling.tiny`
LONG = [*SHORT, Group([*range(20, 32)], ([*range(40, 49)], [*range(33, 47)]))]  # beyond

Values = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Proof:
    """Why rows of a kind are not right for a model; None where they are.

    Attributes:
        packed: about packed rows.
        short: about packed rows whose prompts with a response do not reach beyond a window (see `iris_core.modeling.tiny.WINDOWS`).
        separate: about separate sequences.
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
    """What can be trusted for a model with this configuration.

    Args:
        config: of the model, as loaded.
        lora: the adapter that is trained; none: all weights are.
        checkpointing: whether training recomputes activations.
        trust_remote_code: run code from the model's folder.

    Raises:
        ModelError: transformers has no such causal model, or PEFT no such adapter for it.
    """
    if config.is_encoder_decoder:
        return Proof(*3 * ("it is an encoder-decoder model, and self-play needs a decoder",))
    attention = loading.attention_of(config, trust_remote_code)
    with _aside():
        try:
            pair = _models(config, attention, trust_remote_code)
        except Exception as error:  # models run whatever code they have
            return Proof(*3 * (_failure(error),))
        if lora is not None:
            pair = _adapted(pair, lora)
        separate = _find(pair, "separate", LONG, checkpointing)
        if separate or attention == "eager":
            reason = separate or "its layers cannot be told which tokens belong together"
            return Proof(reason, reason, separate)
        packed = _find(pair, "packed", LONG, checkpointing)
        return Proof(packed, packed and _find(pair, "packed", SHORT, checkpointing), None)


class _Pair:
    """The same weights twice: loaded as for training, and with the class's own eager attention."""

    def __init__(self, model: Any, reference: Any):
        self.model, self.reference = model, reference
        self._expected: dict[int, Values] = {}

    def expected(self, groups: list[Group]) -> Values:
        """What plain forwards of the reference give."""
        if len(groups) not in self._expected:
            self._expected[len(groups)] = _differentiate(self.reference, lambda model: plain_logprobs(model, groups))
        return self._expected[len(groups)]


def _models(config: PreTrainedConfig, attention: str, trust_remote_code: bool) -> _Pair:
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
        silent = copy.deepcopy(small)
        dropout.silence(silent)
        model = tiny.build(silent, attention, trust_remote_code)
        model.load_state_dict(weights)
        dropout.silence_layers(model)
        fuse_norm_rotary(model)
        return _Pair(model, reference)
    raise errors[0]


def _adapted(pair: _Pair, lora: LoraPart) -> _Pair:
    """Both with the same adapter, the reference by PEFT's own forward."""
    settings = {"r": 2, "target_modules": lora.targets, "task_type": "CAUSAL_LM"}
    try:
        reference, model = (
            get_peft_model(side, LoraConfig(**settings)).eval() for side in (pair.reference, pair.model)
        )
        plain_logprobs(reference, SHORT)
    except Exception as error:
        raise ModelError(
            f"training.lora.targets: {lora.targets!r} does not fit {type(pair.model).__name__}: {first_line(error)}: "
            "name other layers, or set training.method to full"
        ) from error
    generator = torch.Generator().manual_seed(1)
    for name, parameter in reference.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    model.load_state_dict(reference.state_dict())
    fuse_lora(model)
    return _Pair(model, reference)


def _find(pair: _Pair, packing: Packing, groups: list[Group], checkpointing: bool) -> str | None:
    """What is wrong with rows of this kind."""
    try:
        if not _is_causal(pair.reference):
            return "it is not causal: a token sees later ones"
        if problem := _compare(pair, packing, groups):
            return problem
        if checkpointing and (problem := _find_in_training_mode(pair, packing, groups)):
            return f"{problem}: set training.gradient_checkpointing to false"
    except Exception as error:
        return _failure(error)
    return None


def _find_in_training_mode(pair: _Pair, packing: Packing, groups: list[Group]) -> str | None:
    """What is wrong where activations are recomputed, which layers do in training mode only."""
    if not pair.model.supports_gradient_checkpointing:
        return "its class cannot recompute activations"
    before = torch.get_rng_state()
    with _checkpointed(pair.model):
        problem = _compare(pair, packing, groups)
    draws = not torch.equal(before, torch.get_rng_state())
    skips = hasattr(pair.model.config, "layerdrop")  # at a rate of 0: what is drawn changes nothing
    if draws and not skips:
        return "it draws random numbers in training mode"
    return problem and f"with recomputed activations, {problem}"


def _compare(pair: _Pair, packing: Packing, groups: list[Group]) -> str | None:
    row = build_row(groups, range(len(groups)), packing)
    found = _differentiate(pair.model, lambda model: response_logprobs(model, row))
    return difference(found, pair.expected(groups))


def plain_logprobs(model: Any, groups: list[Group]) -> Tensor:
    """Log-probs of responses by a plain causal forward each, from the model's own logits; shape [groups, responses].

    Args:
        model: a causal language model, with or without an adapter.
        groups: prompts with as many responses each.
    """

    def logprob(prompt: list[int], response: list[int]) -> Tensor:
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        places = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        logprobs = logits[places].float().log_softmax(dim=-1)
        return logprobs.gather(1, torch.tensor(response)[:, None]).sum()

    return torch.stack([torch.stack([logprob(group.prompt, ids) for ids in group.responses]) for group in groups])


def difference(found: Values, expected: Values) -> str | None:
    """What differs by more than rounding of fp32 between two ways to log-probs and gradients; None if nothing does."""
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
    """Log-probs, and the gradient of a mixture of them by each parameter that is trained."""
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
def _aside() -> Iterator[None]:
    """Without a trace in the process's random numbers, or the advice that transformers gives about models it is to build.

    Gradients are computed, also where the caller is in inference mode. One thread does it: the models are so small that
    several would wait for each other.
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
