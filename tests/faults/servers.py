"""Servers that can be killed and come back, and a proxy that can lose a reply."""

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
        command: what starts it.
        environment: its environment.
        health: a URL that answers once it is there.
        log: where its output goes.
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
        """SIGKILL to all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.killed = time.monotonic()


class Proxy(LossyProxy):
    """Loses the replies that it is told to lose.

    Args:
        target: URL of the server behind it.
        say: told of each lost reply.
    """

    def __init__(self, target: str, say: Callable[[str], None]):
        super().__init__(target)
        self.say, self.loses = say, self._loses
        self.kept, self.lost = 0, 0  # replies to come: so many are sent, then so many lost
        self.counting = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def lose_replies(self, after: int, count: int) -> None:
        """The replies to `count` writing requests are lost, once `after` others have had theirs."""
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
        self.say(f"lost the reply to {request.method} {request.path.partition('?')[0]}")
        return True
