"""A loop in a folder of its own: the command that runs and resumes it, its servers, and its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import yaml

from deployments import processes
from iris_core.common.ports import free_port
from iris_core.common.uris import sqlite_uri
from iris_core.execution.launch import TELEMETRY_OFF
from iris_core.pipeline.stages import loop_places
from tests.conftest import build_model
from tests.faults.servers import Proxy, Server

ROOT = Path(__file__).parents[2]
NAME = "faults"
RANKS = 2  # of training; workers of generation and evaluation
LABEL = "IRIS_FAULTS"  # an environment variable that every process of a loop is started with

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """How a loop is run.

    Attributes:
        name: its name in messages.
        command: the module to run, and its arguments before the recipe.
        start_s: about how long it takes until the first stage begins, in seconds.
        prefect: whether it gets the address of a Prefect server that runs already.
        mlflow: whether it gets the address of an MLflow server, behind a proxy; else MLflow is a file in the store.
        iterations: of the loop; they make no other setup of it.
    """

    name: str
    command: tuple[str, ...]
    start_s: float
    prefect: bool = False
    mlflow: bool = False
    iterations: int = field(default=2, compare=False)

    @property
    def stages(self) -> list[str]:
        """The places of its stages, in their order."""
        return loop_places(range(self.iterations))

    @property
    def places(self) -> list[str]:
        """Where the loop can be: before its stages, at one of them, or after them."""
        return ["start", *self.stages, "end"]


BARE = Setup("stages", ("tests.faults.bare",), 2.0, mlflow=True)
ALONE = Setup("iris run", ("deployments.cli", "run"), 12.0)
SERVED = Setup("iris run, given servers", ("deployments.cli", "run"), 6.0, prefect=True, mlflow=True)
SETUPS = (BARE, ALONE, BARE, SERVED)


def make_inputs(folder: Path) -> None:
    """Makes a tiny random chat model and 18 annotated pairs."""
    build_model(folder / "model")
    rows = [
        {"prompt": f"What is {a} + {b}?", "response": f"It is {a + b}.\nAnswer: {a + b}"}
        for a in range(6)
        for b in range(3)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(inputs: Path, store: Path, iterations: int, tracking_uri: str | None) -> dict[str, object]:
    """The settings of a loop that takes seconds; every stage has several units."""
    return {
        "name": NAME,
        "iterations": iterations,
        "store": str(store),
        "model": {"path": str(inputs / "model"), "dtype": "float32"},
        "data": {"path": str(inputs / "pairs.jsonl"), "heldout": 6, "answer_pattern": r"(?m)^Answer: (.+)$"},
        "generation": {"backend": "transformers", "max_new_tokens": 12, "shard_size": 6},
        "training": {
            "batch_size": 4,
            "epochs": 2,
            "tokens_per_batch": 128,
            "learning_rate": 1e-3,
            "checkpoint_every": 1,
        },
        "evaluation": {
            "benchmarks": ["winogrande"],
            "data_dir": "miniature",
            "backend": "hf",
            "max_gen_tokens": 16,
        },
        "tracking": {"uri": tracking_uri},
        "execution": {"gpus_per_node": RANKS},
    }


def _handle_interrupts() -> None:
    """Lets Ctrl-C end the command, also if this process was started with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Loop:
    """A loop that can be started again until it is complete.

    Args:
        folder: for its store, its servers' files and its logs.
        inputs: from `make_inputs`.
        setup: how it is run.
        echo: called with each message.
    """

    def __init__(self, folder: Path, inputs: Path, setup: Setup, echo: Echo):
        folder.mkdir(parents=True)
        self.folder, self.setup, self.echo = folder, setup, echo
        self.store = folder / "store"
        self.home = self.store / NAME
        self.log = folder / "run.log"
        self.starts = 0
        self.since = 0.0  # when the last start was
        self.prefect: Server | None = None
        self.mlflow: Server | None = None
        self.proxy: Proxy | None = None
        self.environment = self._environment(inputs.parent / "cache")
        self._start_servers()
        self.recipe = folder / "recipe.yaml"
        content = recipe(inputs, self.store, setup.iterations, self.proxy.uri if self.proxy else None)
        self.recipe.write_text(yaml.safe_dump(content))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.proxy:
            self.proxy.end()
        for server in (self.prefect, self.mlflow):
            if server:
                server.kill()

    def start(self) -> None:
        """Starts the command."""
        self.starts += 1
        self.since = time.monotonic()
        with self.log.open("ab") as log:
            self.parent = subprocess.Popen(
                [sys.executable, "-m", *self.setup.command, str(self.recipe)],
                env={**self.environment, LABEL: f"{self.folder} {self.starts}"},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_handle_interrupts,
            )

    def place(self) -> str:
        """Where it is: the first stage without an output."""
        return next((stage for stage in self.setup.stages if not (self.home / stage / "manifest.json").exists()), "end")

    def processes(self, start: int | None = None) -> list[psutil.Process]:
        """Every live process of the loop, or of its start with this number."""
        label = f"{LABEL}={self.folder} {start or ''}".encode()
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.NoSuchProcess):
                entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if any(entry == label or (not start and entry.startswith(label)) for entry in entries):
                    found.append(process)
        return found

    def with_role(self, role: str) -> list[psutil.Process]:
        """The live processes of the last start with this role."""
        found = []
        for process in self.processes(self.starts):
            with suppress(psutil.NoSuchProcess):
                if self._role(process) == role:
                    found.append(process)
        return found

    def kill_all(self) -> None:
        """Kills every process at once, as a power failure does."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.parent.poll()
            time.sleep(0.05)

    def last_lines(self, count: int) -> str:
        """The end of what the command printed."""
        return "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-count:])

    def _role(self, process: psutil.Process) -> str | None:
        if process.pid == self.parent.pid:
            return "parent"
        line = " ".join(process.cmdline())
        if "supervision.py" in line:
            return "supervisor"
        if "-m iris_core." in line:
            return "rank" if "RANK" in process.environ() or "--items" in line else "stage"
        return "prefect" if "prefect" in line and ("server start" in line or "uvicorn" in line) else None

    def _environment(self, cache: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **kept,
            **TELEMETRY_OFF,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "IRIS_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def _start_servers(self) -> None:
        self.store.mkdir()
        if self.setup.mlflow:
            port = free_port()
            url = f"http://{processes.HOST}:{port}"
            command = processes.mlflow_server(port, self.store)
            log = self.folder / "mlflow.log"
            self.mlflow = Server(command, self.environment, f"{url}/health", log)
            self.proxy = Proxy(url, self.echo)
        if self.setup.prefect:
            port, home = free_port(), self.store / ".prefect"
            api = f"http://{processes.HOST}:{port}/api"
            database = sqlite_uri(home / "prefect.db", "sqlite+aiosqlite")
            self.environment |= {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)}
            environment = self.environment | {processes.DATABASE: database}
            command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
            log = self.folder / "prefect.log"
            self.prefect = Server(command, environment, f"{api}/health", log)
