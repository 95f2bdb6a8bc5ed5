"""An HTTP proxy for tests that forwards to a real server and loses some of its replies."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Request(NamedTuple):
    """What a client asks."""

    method: str
    path: str
    body: bytes

    def digest(self) -> str:
        """Equal for equal requests."""
        return hashlib.sha256(b"\0".join([self.method.encode(), self.path.encode(), self.body])).hexdigest()


class LossyProxy(ThreadingHTTPServer):
    """Forwards to `target`.

    Attributes:
        loses: whether the reply to a request is lost, after the server has done what it was asked.
        refuses: a status to answer in place of the server's; 0: the connection is closed unanswered; None: neither.
        seen: the requests so far.
    """

    daemon_threads = True

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = urlsplit(target).netloc
        self.loses: Callable[[Request], bool] = lambda request: False
        self.refuses: Callable[[Request], int | None] = lambda request: None
        self.seen: list[Request] = []

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LossyProxy

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, body)
        self.server.seen.append(request)
        status = self.server.refuses(request)
        if status:
            self._answer(status, {}, b"busy")
        elif status == 0 or (reply := self._ask(request)) is None or self.server.loses(request):
            self._close()
        else:
            self._answer(*reply)

    def _ask(self, request: Request) -> tuple[int, dict[str, str], bytes] | None:
        """What the server answers; None: it is away."""
        connection = http.client.HTTPConnection(self.server.target, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "host")}
        try:
            connection.request(request.method, request.path, request.body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in (
                "transfer-encoding",
                "connection",
                "content-length",
                "server",
                "date",
            ):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        with suppress(OSError):  # the client was killed
            self.end_headers()
            self.wfile.write(content)

    def _close(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client has closed it
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler.forward)


@contextmanager
def lossy_proxy(target: str) -> Iterator[LossyProxy]:
    """A proxy in front of `target`, while inside."""
    with LossyProxy(target) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()
