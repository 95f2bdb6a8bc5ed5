"""How large a model is, from its configuration alone: nothing is downloaded or computed."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iris_core.config import LoraPart


@dataclass(frozen=True)
class Sizes:
    """The numbers that memory follows from.

    Attributes:
        parameters: all of them; tied ones count once.
        adapter: parameters of the adapter; 0 without one.
        linear: parameters of linear layers, the lm_head among them.
        layers: how many decoder layers.
        linear_in_layer: parameters of the linear layers of one decoder layer, on average.
        hidden: hidden size.
        inner: width of the feed-forward layers.
    """

    parameters: int
    adapter: int
    linear: int
    layers: int
    linear_in_layer: int
    hidden: int
    inner: int


def sizes_of(config: PreTrainedConfig, lora: LoraPart | None, trust_remote_code: bool = False) -> Sizes:
    """The sizes of a model of `config`, with the adapter that `lora` describes (None: without one)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = {
        module.weight: module.weight.numel() for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d))
    }
    linear = sum(weights.values())
    text = config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    head = model.get_output_embeddings()
    outside = 0 if head is None else head.weight.numel()
    return Sizes(
        parameters=parameters,
        adapter=_adapter(model, lora) if lora else 0,
        linear=linear,
        layers=layers,
        linear_in_layer=(linear - outside) // layers,
        hidden=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
    )


def _adapter(model: PreTrainedModel, lora: LoraPart) -> int:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=lora.rank, target_modules=lora.targets, task_type="CAUSAL_LM")
    with torch.device("meta"):
        adapted = get_peft_model(model, settings)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
