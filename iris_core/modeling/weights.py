"""Checks the weights of a model folder: what would load as random or wrong weights is refused by name.

    model = weights.check_model(folder)

transformers fills a tensor that it does not find with random numbers. So names and shapes are compared before anything
is computed, on the meta device and with transformers' own key conversion. Then all values are checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from iris_core.common.errors import ModelError
from iris_core.modeling.model_folder import (
    check_adapter,
    check_config,
    check_files,
    check_generation_config,
    one_line,
    quiet,
    read_config,
    refuse_code,
    weight_files,
)

FLOATS = ("F16", "BF16", "F32", "F64")
QUANTIZED = ("F", "U4", "I4")  # first letters of other dtypes of weights: F8_E4M3, F4, …


def check_model(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in `folder` on the meta device, if the folder passes all checks.

    Args:
        folder: of the model, as `save_pretrained` writes it.
        trust_remote_code: run code from the folder.

    Raises:
        ModelError: it cannot be used; the message names the file or tensor, and the remedy.
    """
    check_files(folder)
    check_adapter(folder)
    settings = read_config(folder)
    check_config(folder, settings, trust_remote_code)
    check_generation_config(folder)
    tensors = _tensors(weight_files(folder))
    model, found = _load_on_meta(folder, trust_remote_code)
    _check_class(folder, settings, model)
    _check_dtypes(model, tensors)
    check_loaded(folder, type(model).__name__, found)
    _check_tied(folder, model, tensors)
    _check_values(tensors)
    return model


def check_loaded(folder: Path, kind: str, found: dict[str, Any]) -> None:
    """Refuses a loaded model if weights were missing, had another shape, or were left over.

    Args:
        folder: where the weights came from.
        kind: the model's class.
        found: transformers' `loading_info`.

    Raises:
        ModelError: they were.
    """
    missing, extra = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if found["mismatched_keys"]:
        name, here, wanted = min(found["mismatched_keys"])
        raise ModelError(
            f"model.path: {folder}: {name} has the shape {list(here)}, config.json asks for {list(wanted)}: "
            "take config.json and weights from the same model"
        )
    if missing:
        raise ModelError(
            f"model.path: {folder}: {kind} needs {_count(missing)} that the weights lack and transformers would fill "
            f"with random numbers, such as {missing[0]}: {_remedy(missing, extra)}"
        )
    if extra:
        raise ModelError(
            f"model.path: {folder}: the weights hold {_count(extra)} that {kind} has no place for, such as {extra[0]}: "
            "take config.json and weights from the same model, or remove what is not the model's"
        )


def check_adapter_loaded(model: Any, folder: Path) -> None:
    """Refuses an adapter unless the model took over all its tensors: PEFT ignores those that match no layer.

    Args:
        model: a PeftModel with that adapter.
        folder: of the adapter.

    Raises:
        ModelError: names the first tensor that differs.
    """
    from peft import get_peft_model_state_dict

    taken = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    stored = set(_tensors([folder / "adapter_model.safetensors"]))
    if wrong := sorted(taken ^ stored):
        where = "is in the adapter alone" if wrong[0] in stored else "is not in the adapter"
        raise ModelError(
            f"{folder} is no adapter of this model: {wrong[0]} {where}: use the model that it was trained on"
        )


def check_vocabulary(folder: Path, tokenizer: Any, model: PreTrainedModel) -> None:
    """Refuses a tokenizer with ids for which the embedding or the lm_head has no row.

    Special tokens that neither the chat template nor the tokenizer itself writes are allowed: Gemma 3's text models
    have one for images.

    Raises:
        ModelError: names the token.
    """
    layers = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    rows = min(layer.weight.shape[0] for layer in layers)
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    outside = sorted((i, text) for text, i in tokenizer.get_vocab().items() if i >= rows)
    for i, text in outside:
        added = tokenizer.added_tokens_decoder.get(i)
        never = added and added.special and i not in own and text not in str(tokenizer.chat_template)
        if not never:
            raise ModelError(
                f"model.path: {folder}: the tokenizer gives {text!r} the id {i}, the model has rows for {rows} tokens: "
                "call model.resize_token_embeddings(len(tokenizer)), train the new rows, and save both"
            )


def _load_on_meta(folder: Path, trust_remote_code: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in `folder` without its weights, and transformers' report on what it would have loaded."""
    with quiet() as messages:
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
        except Exception as error:  # model classes, and code from the folder, raise many kinds
            refuse_code(folder, error)
            raise _not_loaded(folder, error, "\n".join(messages)) from error
    return model, found


def _not_loaded(folder: Path, error: Exception, messages: str) -> ModelError:
    incomplete = re.search(r"destined for (\w[\w.]*\w)", messages)
    if incomplete:
        return ModelError(
            f"model.path: {folder}: the tensors that make up {incomplete[1]} are not all there, or differ in shape: "
            "save the whole model with save_pretrained(folder), or download it again"
        )
    cause = one_line(error)
    if cause.startswith("Unrecognized configuration class"):  # and a list of all classes there are
        kind = read_config(folder).get("model_type")
        cause = f"transformers has no causal language model for model_type {kind!r}"
    return ModelError(f"model.path: {folder} cannot be loaded as a causal language model: {cause}: use another model")


def _check_class(folder: Path, settings: dict[str, Any], model: PreTrainedModel) -> None:
    names, kind = settings.get("architectures") or [], type(model).__name__
    if names and kind not in names:
        raise ModelError(
            f"model.path: {folder} was saved as a {names[0]} (config.json, architectures), as a causal language model "
            f"it would be a {kind}: use a causal language model; if it is one, write architectures: [{kind}]"
        )


def _tensors(files: list[Path]) -> dict[str, Path]:
    """Which file each tensor is in, by name."""
    found: dict[str, Path] = {}
    for file in files:
        with _open(file) as content:
            names = content.keys()
        if twice := sorted(found.keys() & set(names)):
            raise ModelError(
                f"model.path: {file.parent}: {twice[0]} is in both {found[twice[0]].name} and {file.name}: "
                "save the model again"
            )
        found |= dict.fromkeys(names, file)
    return found


def _check_dtypes(model: PreTrainedModel, tensors: dict[str, Path]) -> None:
    """Refuses stored dtypes other than plain floating point for floating-point tensors of the model."""
    wanted = model.state_dict()
    dtypes = _each(tensors, lambda content, name: str(content.get_slice(name).get_dtype()))
    for name, stored in dtypes:
        here = wanted.get(name, wanted.get(f"{model.base_model_prefix}.{name}"))
        weight = stored.startswith(QUANTIZED) or (here is not None and here.is_floating_point())
        if weight and stored not in FLOATS:
            raise ModelError(
                f"model.path: {tensors[name]}: {name} is stored as {stored}, as quantised weights are: "
                "give the full-precision model"
            )


def _check_tied(folder: Path, model: PreTrainedModel, tensors: dict[str, Path]) -> None:
    """Refuses tied tensors with different values: transformers would keep both, vLLM one."""
    for target, source in model.all_tied_weights_keys.items():
        one, other = (_read(model, tensors, name) for name in (target, source))
        if one is not None and other is not None and not torch.equal(one, other):
            raise ModelError(
                f"model.path: {folder}: config.json ties {target} to {source}, the weights hold both with different "
                "values: write tie_word_embeddings: false if they were trained apart, else remove the first"
            )


def _read(model: PreTrainedModel, tensors: dict[str, Path], name: str) -> Tensor | None:
    """The tensor `name` of the model; the file may leave out the prefix."""
    for known in (name, name.removeprefix(f"{model.base_model_prefix}.")):
        if known in tensors:
            with _open(tensors[known]) as content:
                tensor: Tensor = content.get_tensor(known)
                return tensor
    return None


def _check_values(tensors: dict[str, Path]) -> None:
    """Refuses tensors with NaN or infinity, and matrices of zeros; one tensor is in memory at a time."""
    for name, fault in _each(tensors, _fault):
        if fault:
            raise ModelError(
                f"model.path: {tensors[name]}: {name} holds {fault}: take another checkpoint, or download it again"
            )


def _fault(content: Any, name: str) -> str:
    """What is wrong with the values of a tensor; "" where nothing is."""
    tensor = content.get_tensor(name)
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    ends = torch.stack(torch.aminmax(tensor)).float()  # NaN is in both
    if not ends.isfinite().all():
        return "NaN or infinite numbers"
    is_empty = tensor.ndim > 1 and not ends.any()
    return "nothing but zeros, as an incomplete download leaves them" if is_empty else ""


def _each(tensors: dict[str, Path], look: Callable[[Any, str], Any]) -> Iterator[tuple[str, Any]]:
    """The name of each tensor with `look(file, name)`, file by file."""
    for file in dict.fromkeys(tensors.values()):
        with _open(file) as content:
            for name in [name for name, place in tensors.items() if place == file]:
                yield name, look(content, name)


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model.path: {file} is truncated or not a safetensors file ({one_line(error)}): download or save it again"
        ) from error


def _remedy(missing: list[str], extra: list[str]) -> str:
    """The remedy for missing tensors: remove a prefix where they have one, else save the model again."""
    for name in extra:
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                prefix = name.removesuffix(wanted)
                return f"{wanted} is there as {name}: remove {prefix!r} from all names"
    beside = f" (what is there has no place, such as {extra[0]})" if extra else ""
    return f"save the whole model with save_pretrained(folder), or download it again{beside}"


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
