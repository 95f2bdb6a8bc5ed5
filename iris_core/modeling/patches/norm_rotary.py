"""Gives Llama, Mistral, Qwen2 and Qwen3 models the RMSNorm and rotary embedding of our kernels (`norm_rotary`).

- What: `forward` of each RMSNorm of a model, and the function `apply_rotary_pos_emb` of its transformers module.
- Why: transformers' own functions keep fp32 copies for backward and pass over memory more often.
- Since: transformers 5.19.
- It can go when transformers offers both as settings, without code from the hub.
- The rotary embedding is a global that attention layers look up: it is replaced for all models of the class in this
  process. `restored_rotary` undoes that where the fused model does not outlive a block of code.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import LlamaModel, MistralModel, PreTrainedModel, Qwen2Model, Qwen3Model
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from iris_core.modeling.kernels.norm_rotary import rms_norm, rotary

MODELS = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
ROTARY = "apply_rotary_pos_emb"


def is_fused(model: PreTrainedModel) -> bool:
    """Whether `model` is of a class that the faster functions fit."""
    return isinstance(model.base_model, MODELS)


def fuse_norm_rotary(model: PreTrainedModel) -> None:
    """Gives `model` the faster functions where it is of a class that they fit; other models stay unchanged."""
    if not is_fused(model):
        return
    setattr(_module_of(type(model.base_model)), ROTARY, rotary)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.forward = types.MethodType(_forward_norm, module)


@contextmanager
def restored_rotary() -> Iterator[None]:
    """Afterwards every class has the rotary embedding that it had before."""
    before = [(module, getattr(module, ROTARY)) for module in map(_module_of, MODELS)]
    try:
        yield
    finally:
        for module, function in before:
            setattr(module, ROTARY, function)


def _module_of(kind: type) -> types.ModuleType:
    return sys.modules[kind.__module__]


def _forward_norm(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)
