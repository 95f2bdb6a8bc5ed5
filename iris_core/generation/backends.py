"""Which engine a backend setting means on this machine. Light: it is asked before anything starts."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from iris_core.common.errors import ConfigError

DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA, AMD, either under Windows


def resolve(field: str, wanted: str, fallback: str) -> str:
    """What `wanted` means: "auto" is vLLM where it is installed, else `fallback`.

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise ConfigError(f"{field}: vllm is not installed here: install it (`make setup`), or use `{fallback}`")
    return wanted if wanted != "auto" else ("vllm" if installed else fallback)


def check_device(field: str, backend: str, fallback: str, devices: Path = Path("/dev")) -> None:
    """Raises ConfigError if `backend` is vLLM, its build is the one for GPUs, and this machine has none."""
    if backend != "vllm" or not _is_gpu_build():
        return
    if not any(next(devices.glob(name), None) for name in DEVICES):
        raise ConfigError(
            f"{field}: the vLLM that is installed runs on GPUs, and this machine shows none: `make setup LOCK=cpu`, or use "
            f"`{fallback}`"
        )


def _is_gpu_build() -> bool:
    try:
        return "cpu" not in version("vllm")
    except PackageNotFoundError:  # the build for CPUs is a package of another name
        return False
