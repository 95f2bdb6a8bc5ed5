"""SHA-256 digests of content. Keys of stages are made of them: of what a file holds, never of its path."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def text_digest(text: str) -> str:
    """SHA-256 of `text` in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return text_digest(canonical_json(value))


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of the file at `path`, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, patterns: tuple[str, ...] = ("**/*",)) -> str:
    """SHA-256 over the relative names and contents of the files of `folder` that match `patterns`."""
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return json_digest({file.relative_to(folder).as_posix(): file_digest(file) for file in files})


def model_digest(folder: Path) -> str:
    """SHA-256 over the files of a model or adapter folder that decide its outputs: weights, settings, tokenizer."""
    return folder_digest(folder, MODEL_FILES)
