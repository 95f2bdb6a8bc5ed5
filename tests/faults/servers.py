"""Servers that can be killed and come back, and a proxy that can lose a reply."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from deployments import processes

HOP_BY_HOP = ("connection", "content-encoding", "content-length", "host", "transfer-encoding")


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
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True, cwd=self.log.parent,
            )  # fmt: skip
        processes.wait_healthy("the server", self.health, self.process, self.log)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.killed = time.monotonic()


class Proxy(ThreadingHTTPServer):
    """Forwards HTTP to `target`, and loses the replies that it is told to lose.

    Args:
        target: URL of the server behind it.
        say: told of each lost reply.
    """

    daemon_threads = True

    def __init__(self, target: str, say: Callable[[str], None]):
        super().__init__((processes.HOST, 0), _Forward)
        self.target, self.say = target, say
        self.client = httpx.Client(timeout=60)
        self.kept, self.lost = 0, 0  # replies to come: so many are sent, then so many lost
        self.counting = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{processes.HOST}:{self.server_address[1]}"

    def lose_replies(self, after: int, count: int) -> None:
        """The replies to `count` writing requests are lost, once `after` others have had theirs."""
        with self.counting:
            self.kept, self.lost = after, count

    def loses(self, method: str, path: str) -> bool:
        """Whether the reply to this request is to be lost."""
        if method == "GET" or path.endswith("/search"):
            return False
        with self.counting:
            if not self.lost:
                return False
            if self.kept:
                self.kept -= 1
                return False
            self.lost -= 1
        self.say(f"lost the reply to {method} {path.partition('?')[0]}")
        return True

    def end(self) -> None:
        """Stops listening."""
        self.shutdown()
        self.server_close()
        self.client.close()


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            reply = self.server.client.request(
                self.command, self.server.target + self.path, content=body,
                headers=_kept(dict(self.headers.items())),
            )  # fmt: skip
        except httpx.HTTPError:  # the server is away: so is this connection
            self.close_connection = True
            return
        if self.server.loses(self.command, self.path):
            self.close_connection = True
            return
        self.send_response(reply.status_code)
        for name, value in _kept(reply.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.content)))
        with suppress(OSError):  # the client was killed
            self.end_headers()
            self.wfile.write(reply.content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the server behind it has a log."""


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
