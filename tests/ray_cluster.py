"""A real Ray cluster on this machine, for tests: a head, and more nodes that may be lost.

It runs in a process of its own (`python -m tests.ray_cluster`), so that the tests' process never loads Ray.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.processes import PATIENCE_S, above, command_line, environment, pid_lives, processes, wait_for

ROOT = Path(__file__).parents[1]
STORE_BYTES = 80 * 2**20
CPUS = 2  # of each node, as Ray counts; they may be more than the machine has


class Nodes:
    """A cluster of `count` nodes.

    Args:
        count: of the nodes.
        apart: whether each node has an IRIS_CACHE of its own, `folder/cache-<number>`; the head then has no CPUs, so
            that every node that a stage uses may be lost.

    Attributes:
        folder: of Ray's files.
        environment: variables that a process needs to use it.
        address: of the cluster.
    """

    def __init__(self, count: int, apart: bool = False):
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: paths of sockets have at most 107 bytes
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self.folder,
            "RAY_worker_niceness": "0",  # Ray's 15 would let everything else on this machine go first
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_cluster", str(count), *([self.folder] if apart else [])],
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.head, _, self.address = self._answer("ready").partition(" ")

    def lose(self, *words: str) -> None:
        """Kills a node that runs a process whose command line holds `words`; not the head, with which all would end."""
        found = wait_for(lambda: {node_of(process) for process in processes(*words)} - {None, int(self.head)})
        self._ask(f"lose {min(found)}")

    def lose_first_rank(self, *words: str) -> None:
        """Kills the node of the process with `words` that is rank 0, and removes that node's cache."""
        first = wait_for(lambda: [each for each in processes(*words) if environment(each).get("RANK") == "0"])[0]
        cache = environment(first)["IRIS_CACHE"]
        self._ask(f"lose {node_of(first)}")
        wait_for(lambda: not pid_lives(first.pid))
        shutil.rmtree(cache)

    def add(self, gpus: int = 0) -> None:
        """Adds a node that says it has some GPUs."""
        self._ask(f"add {gpus}")

    def end(self) -> None:
        """Ends the cluster."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=PATIENCE_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self._answer("done")

    def _answer(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(f"{word} ") or line.strip() == word:
                return line.removeprefix(word).strip()
        raise AssertionError(f"the cluster ended before it said {word!r}")


def node_of(process: psutil.Process) -> int | None:
    """The process id of the raylet of the node on which `process` runs; None if it has ended."""
    return next((each.pid for each in above(process) if "/raylet/raylet" in command_line(each)), None)


def pid_of(node: Any) -> int:
    """The process id of a node's raylet."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def serve(count: int, folder: str | None = None) -> None:
    """Runs the cluster, does what each line of the input says, and ends with it.

    Args:
        count: of the nodes.
        folder: where each node has an IRIS_CACHE of its own.
    """
    from ray.cluster_utils import Cluster

    size = {"num_cpus": CPUS, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    own = ({"env_vars": {"IRIS_CACHE": f"{folder}/cache-{number}"}} if folder else {} for number in itertools.count())
    idle = {"num_cpus": 0} if folder else {}
    cluster = Cluster(initialize_head=True, head_node_args={**size, **next(own), **idle})
    nodes = [cluster.add_node(**size, **next(own)) for _ in range(1, count)]
    print("ready", pid_of(cluster.head_node), cluster.address, flush=True)
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "add":
            nodes.append(cluster.add_node(**size, **next(own), num_gpus=int(number)))
        else:
            (lost,) = (node for node in nodes if pid_of(node) == int(number))
            nodes.remove(lost)
            cluster.remove_node(lost, allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
