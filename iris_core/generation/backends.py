"""Which engine a backend setting means on this machine. Light to import: it is asked before anything starts."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from iris_core.common.errors import ConfigError

DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # files of NVIDIA's GPUs, AMD's, and of either under WSL


def resolve(field: str, wanted: str, fallback: str) -> str:
    """The engine that `wanted` means: "auto" is vLLM where it is installed, else `fallback`.

    Args:
        field: the setting's name, for the message.
        wanted: "auto", "vllm" or `fallback`.
        fallback: the name that the setting has for transformers.

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise ConfigError(f"{field}: vllm is not installed here: install it (`make setup`), or use `{fallback}`")
    if wanted == "auto":
        return "vllm" if installed else fallback
    return wanted


def check_device(field: str, backend: str, fallback: str, devices: Path = Path("/dev")) -> None:
    """Checks that vLLM's build fits this machine.

    Raises:
        ConfigError: `backend` is vLLM, its build is the one for GPUs, and this machine has no GPU.
    """
    if backend != "vllm" or not _is_gpu_build():
        return
    if not any(next(devices.glob(name), None) for name in DEVICES):
        raise ConfigError(
            f"{field}: the vLLM that is installed runs on GPUs, and this machine shows none: "
            f"`make setup LOCK=cpu`, or use `{fallback}`"
        )


def check_tensor_parallel(field: str, backend: str, size: int) -> None:
    """Checks that the engine can run on several GPUs together.

    Args:
        field: the setting's name, for the message.
        backend: from `resolve`.
        size: GPUs of one engine.

    Raises:
        ConfigError: it cannot.
    """
    if size > 1 and backend != "vllm":
        raise ConfigError(
            f"execution.tensor_parallel: {size}, but {field} is {backend}, which uses one GPU: set it to 1, or use vllm"
        )


def _is_gpu_build() -> bool:
    try:
        return "cpu" not in version("vllm")
    except PackageNotFoundError:  # the build for CPUs is a package of another name
        return False
