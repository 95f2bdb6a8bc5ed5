"""Servers that can be killed and started again, and a proxy that can lose replies."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from deployments import processes
from tests.lossy_proxy import LossyProxy, Request


class Server:
    """A server in a process group of its own, on a port that stays the same.

    Args:
        command: program and arguments.
        environment: its environment.
        health: a URL that answers once it runs.
        log: the file for its output.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], health: str, log: Path):
        self.command, self.environment, self.health, self.log = command, environment, health, log
        self.killed = 0.0
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.log.parent,
            )
        processes.wait_healthy("the server", self.health, self.process, self.log)

    def kill(self) -> None:
        """Kills all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.killed = time.monotonic()


class Proxy(LossyProxy):
    """A proxy that loses replies when asked to.

    Args:
        target: URL of the server behind it.
        echo: called with a message for each lost reply.
    """

    def __init__(self, target: str, echo: Callable[[str], None]):
        super().__init__(target)
        self.echo, self.loses = echo, self._loses
        self.kept, self.lost = 0, 0  # of the replies to come: how many are sent first, then how many are lost
        self.counting = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def lose_replies(self, after: int, count: int) -> None:
        """Loses the replies to `count` writing requests, after `after` others got theirs."""
        with self.counting:
            self.kept, self.lost = after, count

    def end(self) -> None:
        """Stops listening."""
        self.shutdown()
        self.server_close()

    def _loses(self, request: Request) -> bool:
        if request.method == "GET" or request.path.endswith("/search"):
            return False
        with self.counting:
            if not self.lost:
                return False
            if self.kept:
                self.kept -= 1
                return False
            self.lost -= 1
        self.echo(f"lost the reply to {request.method} {request.path.partition('?')[0]}")
        return True
