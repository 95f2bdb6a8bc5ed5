"""The GPUs of this machine, by nvidia-smi, and those that this process may use. Loads no torch: launching asks it."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from itertools import takewhile

VISIBLE = "CUDA_VISIBLE_DEVICES"
LIST_S = 60.0  # for nvidia-smi on a machine whose drivers are not loaded
FIELDS = ("uuid", "name", "driver_version", "memory.total", "compute_cap")

MIG = re.compile(r"^ *MIG (\S+) +Device +\d+: \(UUID: (MIG-\S+)\)", re.MULTILINE)

Gpu = dict[str, str]  # a value for each of `FIELDS`


@cache
def installed(seconds: float = LIST_S) -> list[Gpu]:
    """What nvidia-smi reports of each GPU, in the order of their numbers; empty where it does not answer in time."""
    shown = _shown(seconds, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
    return [dict(zip(FIELDS, (part.strip() for part in line.split(",")), strict=True)) for line in shown.splitlines()]


def mig_profile(name: str) -> str | None:
    """The profile of the MIG device that CUDA_VISIBLE_DEVICES names by `name`, as 3g.40gb; None if there is none."""
    shown = _shown(LIST_S, "-L") if name.startswith("MIG-") else ""
    return next((profile for profile, uuid in MIG.findall(shown) if uuid == name), None)


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: by number, UUID or its beginning."""
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        return [str(number) for number in range(len(installed()))]
    return list(takewhile(_is_gpu, (name.strip() for name in chosen.split(","))))  # CUDA ignores what follows


def find(name: str) -> Gpu | None:
    """The GPU that CUDA_VISIBLE_DEVICES names by `name`; None if nvidia-smi shows none."""
    gpus = installed()
    if name.isdecimal():
        return gpus[int(name)] if int(name) < len(gpus) else None
    return next((gpu for gpu in gpus if gpu["uuid"].startswith(name)), None)


def _shown(seconds: float, *options: str) -> str:
    """What nvidia-smi prints; nothing where it does not answer in time."""
    try:
        done = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _is_gpu(name: str) -> bool:
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))
