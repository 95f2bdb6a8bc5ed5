"""How large a model is, from its configuration alone: nothing is downloaded or computed."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iris_core.common.errors import IrisError, ModelError
from iris_core.config import Experiment, LoraPart
from iris_core.data import hub
from iris_core.modeling import loading
from iris_core.modeling.lora import check_targets, not_adaptable
from iris_core.modeling.model_folder import check_adapter, check_config, one_line, quiet, read_config
from iris_core.modeling.patches.norm_rotary import is_fused
from iris_core.modeling.tiny import ACTIVE_EXPERTS
from iris_core.pipeline.sizes import Sizes

IN_LAYER = re.compile(r"\.\d+\.")
HEAD_NORM = re.compile(r"\.(q|k|query|key)_(layer)?norm$")


def recipe_sizes(experiment: Experiment) -> Sizes:
    """The sizes of an experiment's model, from its folder or from the hub.

    Raises:
        ConfigError: the adapter's targets match no layer of the model.
        ModelError: the model's configuration cannot be read, or is not one that can be trained.
        ServiceError: the hub cannot be reached for it.
    """
    model, training = experiment.model, experiment.training
    folder = hub.local_folder(model)
    if folder is None:
        commit = hub.resolve_revision("model", model.path, model.revision)
        code = ["*.py"] if model.trust_remote_code else []
        folder = hub.download(model.path, model.revision, commit, ["config.json", *code])
    check_adapter(folder)
    check_config(folder, read_config(folder), model.trust_remote_code)
    config = loading.load_config(folder, model.trust_remote_code)
    return trained_sizes(config, training.lora if training.method == "lora" else None, model.trust_remote_code)


def trained_sizes(config: PreTrainedConfig, lora: LoraPart | None, trust_remote_code: bool = False) -> Sizes:
    """`sizes_of` with the adapter that is trained; where all weights are (None), with the default one if it fits."""
    if lora is not None:
        return sizes_of(config, lora, trust_remote_code)
    try:
        return sizes_of(config, LoraPart(), trust_remote_code)
    except IrisError:
        return sizes_of(config, None, trust_remote_code)


def sizes_of(config: PreTrainedConfig, lora: LoraPart | None, trust_remote_code: bool = False) -> Sizes:
    """The sizes of a model of `config`, with the adapter that `lora` describes (None: without one).

    Raises:
        ConfigError: the adapter's targets match no layer.
        ModelError: the model cannot be built, or cannot have the adapter.
    """
    model = _build(config, trust_remote_code)
    head = model.get_output_embeddings()
    lm_head = None if head is None else head.weight
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)} - {lm_head}
    matrices = _count(each for each in model.parameters() if each.ndim > 1 and each not in embeddings)
    text = config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    return Sizes(
        parameters=_count(model.parameters()),
        adapter=_adapter(model, lora) if lora else 0,
        matrices=matrices,
        layers=layers,
        matrices_in_layer=(matrices - (0 if lm_head is None else lm_head.numel())) // layers,
        hidden=int(text.hidden_size),
        inner=_inner(text),
        attention=_attention(text),
        norms=max(2, _norms(model, text.hidden_size) // layers),
        head_norms=any(HEAD_NORM.search(name) for name, _ in model.named_modules()),
        fused=is_fused(model),
        experts=_experts(text),
    )


def _build(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model on the meta device, where tensors have no content."""
    try:
        with torch.device("meta"), quiet():
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    except Exception as error:  # model classes, and code from the folder, raise many kinds
        raise ModelError(
            f"model.path: no causal language model can be built from its configuration (model_type "
            f"{config.model_type!r}): {one_line(error)}: fix it, or use another model"
        ) from error


def _adapter(model: PreTrainedModel, lora: LoraPart) -> int:
    from peft import LoraConfig, get_peft_model

    check_targets(model, lora.targets)
    settings = LoraConfig(r=lora.rank, target_modules=lora.targets, task_type="CAUSAL_LM")
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            adapted = get_peft_model(model, settings)
    except Exception as error:  # PEFT raises many kinds
        raise not_adaptable(model, lora.targets, error) from error
    return _count(parameter for parameter in adapted.parameters() if parameter.requires_grad)


def _inner(text: Any) -> int:
    """The widest feed-forward layer, or the experts that a router chooses for a token side by side."""
    dense = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    dense = max(dense) if isinstance(dense, list) else dense  # one number for each layer
    expert = getattr(text, "moe_intermediate_size", None) or dense
    return int(max(dense, expert * max(1, _experts(text))))


def _experts(text: Any) -> int:
    """How many experts a router chooses for a token."""
    found = [value for name, value in vars(text).items() if ACTIVE_EXPERTS.search(name) and isinstance(value, int)]
    return max(found, default=0)


def _attention(text: Any) -> int:
    """Numbers in the queries and keys of a token; as many keys as queries where the configuration does not say."""
    heads, key_heads, size = (
        value if isinstance(value := getattr(text, name, None), int) else 0  # lists: one number for each layer
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if not heads:
        return 2 * int(text.hidden_size)
    return (heads + (key_heads or heads)) * (size or int(text.hidden_size) // heads)


def _norms(model: PreTrainedModel, hidden: int) -> int:
    """Norms of hidden states in all layers together."""
    named = [
        (name, getattr(module, "weight", None))
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
    ]
    return sum(
        weight is not None and weight.numel() == hidden and bool(IN_LAYER.search(name)) and not HEAD_NORM.search(name)
        for name, weight in named
    )


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
