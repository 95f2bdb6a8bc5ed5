"""Loads models: resolves a folder or hub name, loads tokenizer and weights, verifies that they are unchanged."""

from __future__ import annotations

import inspect
import json
import sys
import timeit
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from iris_core.common.digest import MODEL_FILES
from iris_core.common.errors import ModelError, first_line
from iris_core.common.outages import wait_out
from iris_core.config import ModelPart
from iris_core.data import hub
from iris_core.data.hub import local_folder
from iris_core.modeling import dropout
from iris_core.modeling.attention.interface import GROUPED
from iris_core.modeling.model_folder import check_adapter, refuse_code
from iris_core.modeling.patches.norm_rotary import fuse_norm_rotary
from iris_core.modeling.patches.shared_loading import read_parts
from iris_core.modeling.weights import check_adapter_loaded, check_loaded
from iris_core.store import Policy


def resolve(model: ModelPart, commit: str | None = None) -> Path:
    """The local folder of `model`: as given, or a snapshot from the hub.

    Args:
        model: path or hub name, and revision.
        commit: of the hub model; None: the current commit of `model.revision`.

    Raises:
        ModelError: the folder is missing or holds no safetensors, or the hub refuses the model.
        ServiceError: the hub cannot be reached.
    """
    folder = local_folder(model) or _download(model, commit)
    if not any(folder.glob("*.safetensors")):
        check_adapter(folder)
        raise ModelError(
            f"model.path: {folder} holds no *.safetensors: load the model once and save it with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    return folder.absolute()


def _download(model: ModelPart, commit: str | None) -> Path:
    if commit is None:
        commit = hub.resolve_revision("model", model.path, model.revision)
    code = ["*.py"] if model.trust_remote_code else []
    return hub.download(model.path, model.revision, commit, [*MODEL_FILES, *code])


def resolve_dtype(name: str) -> str:
    """`name`, or for "auto" the dtype that this machine multiplies faster: "bfloat16" or "float32"."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if supported and _matmul_speedup(torch.bfloat16) >= 1 else "float32"


def _matmul_speedup(dtype: torch.dtype) -> float:
    """Speed of the CPU's matmuls in `dtype` relative to fp32: some CPUs have slow instructions for bfloat16."""

    def seconds(dtype: torch.dtype) -> float:
        factor = torch.ones(1024, 1024, dtype=dtype)
        return min(timeit.repeat(lambda: factor @ factor, number=1, repeat=5))

    return seconds(torch.float32) / seconds(dtype)


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`.

    Raises:
        ModelError: it has no chat template, or cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        refuse_code(folder, error)
        raise ModelError(f"model.path: {folder} has no tokenizer that can be loaded: {first_line(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"model.path: {folder} has no chat template: self-play starts from a chat model; "
            "set tokenizer.chat_template and save it with tokenizer.save_pretrained(folder)"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def generation_ends(folder: Path) -> list[int]:
    """The tokens that end generation, from the settings in a model's folder."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        ends = found.get("eos_token_id", found.get("text_config", {}).get("eos_token_id"))
        if ends is not None:
            return ends if isinstance(ends, list) else [ends]
    return []


def load_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration, as it was saved.

    Raises:
        ModelError: transformers cannot read it.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model.path: {folder}/config.json cannot be read: {first_line(error)}") from error


def model_class(config: PreTrainedConfig, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that `AutoModelForCausalLM` uses for `config`.

    Raises:
        ModelError: there is none.
    """
    remote = getattr(config, "auto_map", {}).get("AutoModelForCausalLM")
    if remote and trust_remote_code:
        return get_class_from_dynamic_module(remote, config.name_or_path)
    try:
        return AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError as error:
        raise ModelError(
            f"model.path: transformers has no causal language model for model_type {config.model_type!r}: "
            "use another model"
        ) from error


def attention_of(config: PreTrainedConfig, trust_remote_code: bool = False) -> str:
    """The attention that a model of `config` is loaded with: ours, or its own eager one where its class has no choice.

    Some classes take any attention, but apply their own mask only for names that they know: these get the eager one.
    """
    found = model_class(config, trust_remote_code)
    has_choice = found._can_set_attn_implementation() and (found._supports_sdpa or found._supports_flex_attn)
    known_names = '_attn_implementation in ("eager", "sdpa")'
    if has_choice and known_names not in inspect.getsource(sys.modules[found.__module__]):
        return GROUPED
    return "eager"


def load_policy(
    policy: Policy,
    dtype: str,
    *,
    trainable: bool = False,
    trust_remote_code: bool = False,
    mesh: DeviceMesh | None = None,
) -> PreTrainedModel:
    """The model of `policy` on this machine's device, with its adapter (as a PeftModel) where it has one.

    Args:
        policy: model folder and adapter.
        dtype: "bfloat16" or "float32".
        trainable: whether an adapter's weights can be trained further.
        trust_remote_code: run code from the model's folder.
        mesh: of ranks that each read their part, for `iris_core.modeling.sharding.shard`, see its `PARTS`; None: the
            whole model.

    Raises:
        ModelError: weights of the model or the adapter are missing, left over, or of another shape.
    """
    config = load_config(policy.model.path, trust_remote_code)
    dropout.disable(config)
    sharing: AbstractContextManager[dict[str, Any]] = read_parts(mesh) if mesh else nullcontext({})
    with sharing as options:
        model, found = AutoModelForCausalLM.from_pretrained(
            policy.model.path,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention_of(config, trust_remote_code),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported in one line by `check_loaded`
            output_loading_info=True,
            **options,
        )
    vars(model.config).pop("distributed_config", None)
    check_loaded(policy.model.path, type(model).__name__, found)
    fuse_norm_rotary(model)
    if policy.adapter is not None:
        from peft import PeftModel

        from iris_core.modeling.patches.lora import fuse_lora

        model = PeftModel.from_pretrained(model, policy.adapter.path, is_trainable=trainable)
        check_adapter_loaded(model, policy.adapter.path)
        model.active_peft_config.base_model_name_or_path = str(policy.model.path)
        fuse_lora(model)
    dropout.disable_layers(model)
    return model.to(device()).eval()


def sample_plainly(model: PreTrainedModel) -> None:
    """Makes `model.generate` ignore generation_config.json, for example a repetition penalty in it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.generation_config = inner.generation_config = GenerationConfig()


def verify(policy: Policy, patience: float = 0.0) -> None:
    """Checks that the folders of `policy` match their digests; from a store in S3, a damaged one is fetched again.

    Args:
        policy: model and adapter.
        patience: seconds for which an outage of S3 is waited out.

    Raises:
        ModelError: a folder is missing or has changed.
    """
    for artifact in filter(None, (policy.model, policy.adapter)):
        if not wait_out(patience, artifact.holds):
            raise ModelError(f"{artifact.path} is missing or has changed since this experiment started: restore it")
