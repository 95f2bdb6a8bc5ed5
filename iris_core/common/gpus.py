"""The GPUs of this machine, by nvidia-smi: nothing heavy is imported."""

from __future__ import annotations

import os
import subprocess

ANSWER_S = 2.5
FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def nvidia_gpus() -> list[dict[str, str]]:
    """What nvidia-smi reports of each GPU; empty without a GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(FIELDS, (part.strip() for part in line.split(",")), strict=True)) for line in done.stdout.splitlines()
    ]


def visible_gpus() -> list[dict[str, str]]:
    """Those that CUDA_VISIBLE_DEVICES lets a process use, as many as it names."""
    gpus, visible = nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    return gpus[: len([name for name in visible.split(",") if name.strip() not in ("", "-1")])]
