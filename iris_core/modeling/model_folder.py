"""Checks the files of a model folder: what would not load as the model that was trained is refused by name.

`iris_core.modeling.weights` checks the tensors in these files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from iris_core.common.digest import MODEL_FILES
from iris_core.common.errors import ModelError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
JSON_FILES = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "adapter_config.json",
)
QUANTIZED = ("quantization_config", "compression_config", "quantization")
LFS = b"version https://git-lfs"
CAUSAL_DESPITE_CONFIG = ("gpt_neox", "gpt_neox_japanese")  # `is_decoder: false` means nothing there
MAX_MESSAGE = 200  # characters of another library's message


def check_files(folder: Path) -> None:
    """Refuses files without their content: Git LFS pointers, dead links, empty files, broken JSON.

    Raises:
        ModelError: there is one.
    """
    for file in sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)}):
        if not file.exists():
            raise ModelError(f"model.path: {file} is a link to a missing file: download the model again")
        if not file.is_file():
            continue
        start = _read(file, len(LFS))
        if start == LFS:
            raise ModelError(
                f"model.path: {file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"
            )
        if not start and file.suffix in (".safetensors", ".json", ".model"):
            raise ModelError(f"model.path: {file} is empty: download or save the model again")
        if file.name in JSON_FILES:
            read_json(file)


def check_adapter(folder: Path) -> None:
    """Refuses an adapter's folder, and a whole model with an adapter beside it, which transformers would apply.

    Raises:
        ModelError: it is one of these.
    """
    here = [name for name in ADAPTER if (folder / name).exists()]
    if not here:
        return
    if (folder / WHOLE).exists() or (folder / INDEX).exists():
        raise ModelError(
            f"model.path: {folder} holds {' and '.join(here)} beside a whole model, and transformers would add that "
            "adapter to it: move them away if they are merged already, else merge them first"
        )
    settings = read_json(folder / ADAPTER[0]) if (folder / ADAPTER[0]).exists() else {}
    base = settings.get("base_model_name_or_path") or "a base model"
    raise ModelError(
        f"model.path: {folder} is an adapter on {base}, not a model: merge it first, with "
        "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder), "
        "and save the tokenizer there"
    )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`.

    Raises:
        ModelError: there is none.
    """
    try:
        content = json.loads(_read(file).decode())
    except ValueError as error:
        raise ModelError(f"model.path: {file} is not JSON ({error}): fix it, or download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"model.path: {file} holds a {type(content).__name__}, a JSON object is needed: fix it")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json of a model in full precision.

    Raises:
        ModelError: there is none, or the weights are quantised.
    """
    if not (folder / "config.json").exists():
        raise ModelError(
            f"model.path: {folder} has no config.json: save the model with save_pretrained(folder), "
            "or copy config.json there"
        )
    settings = read_json(folder / "config.json")
    for part in (settings, *settings.values()):
        found = [key for key in QUANTIZED if isinstance(part, dict) and part.get(key)]
        if found:
            raise ModelError(
                f"model.path: {folder} is quantised (config.json, {found[0]}: {_method(part[found[0]])}): it can be "
                "neither trained nor merged exactly: give the full-precision model that it was made from"
            )
    return settings


def weight_files(folder: Path) -> list[Path]:
    """The weight files, which must be the same for transformers and vLLM.

    Raises:
        ModelError: they differ, or one is missing.
    """
    present = sorted(file.name for file in folder.glob("*.safetensors"))
    names = _shards(folder) if (folder / INDEX).exists() else [WHOLE]
    if WHOLE in present and names != [WHOLE]:
        raise ModelError(
            f"model.path: {folder} holds both {WHOLE} and {INDEX}: transformers loads the one, vLLM the other: "
            "move one away"
        )
    if not (folder / INDEX).exists() and present != [WHOLE]:
        raise ModelError(
            f"model.path: {folder} holds {', '.join(present)}: without {INDEX}, {WHOLE} alone is needed: transformers "
            "loads nothing else, vLLM all of them: move away what is not the model's, or save it with "
            "save_pretrained(folder)"
        )
    missing = [name for name in names if name not in present]
    if missing:
        raise ModelError(
            f"model.path: {folder}: {len(missing)} of {len(names)} shards missing, such as {missing[0]} "
            f"({INDEX} lists it): download or copy the model again"
        )
    return [folder / name for name in names]


def refuse_code(folder: Path, error: Exception) -> None:
    """Raises ModelError if `error` is transformers' refusal to run code from `folder`."""
    if "trust_remote_code" in str(error):
        raise ModelError(
            f"model.path: {folder} needs its own Python code (auto_map in its JSON files), which "
            "model.trust_remote_code: false forbids: read that code, then set model.trust_remote_code: true"
        ) from error


def check_config(folder: Path, settings: dict[str, Any], trust_remote_code: bool) -> None:
    """Refuses a configuration that transformers does not know, or that is not of a causal language model.

    Args:
        folder: of the model.
        settings: from `read_config`.
        trust_remote_code: run code from the folder.

    Raises:
        ModelError: it is one of these.
    """
    file = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers, its validators and code from the folder raise many kinds
        refuse_code(folder, error)
        if "model_type" not in settings:
            raise ModelError(
                f"model.path: {file} has no model_type: save the model again with save_pretrained(folder)"
            ) from error
        raise ModelError(
            f"model.path: {file} describes no model that transformers {transformers.__version__} knows: "
            f"{one_line(error)}: fix it, or use another model"
        ) from error
    encoder = not getattr(config, "is_decoder", True)
    if config.is_encoder_decoder or (encoder and config.model_type not in CAUSAL_DESPITE_CONFIG):
        raise ModelError(
            f"model.path: {folder} is no causal language model (config.json, model_type: {config.model_type}, "
            f"is_encoder_decoder: {config.is_encoder_decoder}, is_decoder: {not encoder}): use one"
        )


def check_generation_config(folder: Path) -> None:
    """Refuses contradictory generation settings: a model with them can be loaded, but not saved.

    Raises:
        ModelError: they do.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return
    try:
        with quiet():
            GenerationConfig.from_pretrained(folder).validate(strict=True)
    except Exception as error:  # of many kinds
        raise ModelError(f"model.path: {file} is not valid: {one_line(error)}: fix it") from error


def one_line(error: Exception) -> str:
    """The message of `error` as one line, shortened where it is long."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Collects transformers' messages, and shows neither them nor its progress bars."""
    lines: list[str] = []
    handler, logger = logging.Handler(), transformers_logging.get_logger()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    handlers, propagate = logger.handlers, logger.propagate
    bars = transformers_logging.is_progress_bar_enabled()
    logger.handlers, logger.propagate = [handler], False
    transformers_logging.disable_progress_bar()
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if bars:
            transformers_logging.enable_progress_bar()


def _read(file: Path, size: int = -1) -> bytes:
    try:
        with file.open("rb") as content:
            return content.read(size)
    except OSError as error:
        raise ModelError(f"model.path: {file} cannot be read: {error.strerror}") from error


def _method(quantization: Any) -> str:
    return str(quantization.get("quant_method", "set")) if isinstance(quantization, dict) else "set"


def _shards(folder: Path) -> list[str]:
    """The names of the files in the index."""
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"model.path: {folder / INDEX} has no weight_map: save or download the model again")
    return sorted(set(shards.values()))
