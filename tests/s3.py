"""A real S3 server in a process of its own (moto's), and a proxy before it that can be killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import s3fs

from iris_core.common.ports import free_port
from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server with no buckets, while inside."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def new_bucket(endpoint: str) -> str:
    """The URI of a store in a bucket of its own."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    files(endpoint).mkdir(bucket)
    return f"s3://{bucket}/some/prefix"


def files(endpoint: str) -> s3fs.S3FileSystem:
    """The server's buckets, as a file system."""
    return s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True)


def contents(endpoint: str, uri: str) -> dict[str, bytes]:
    """Every object below `uri`, by name."""
    server, start = files(endpoint), len(uri.removeprefix("s3://")) + 1
    return {name[start:]: server.cat_file(name) for name in server.find(uri)}


class Proxy:
    """Forwards to a server, in a process that ends itself after some bytes, as if the server was killed then.

    Args:
        target: the server's address.
    """

    def __init__(self, target: str):
        self.target, self.port = target.rpartition(":")[2], free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, dies_after: int = 1 << 60) -> None:
        """Starts it; it dies once it has forwarded `dies_after` bytes to the server."""
        command = [sys.executable, "-m", "tests.s3", str(self.port), self.target, str(dies_after)]
        self.process = subprocess.Popen(command, cwd=ROOT)
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        """Kills it, unless it is dead, and waits for its end."""
        if self.process:
            self.process.kill()
            self.process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)


def forward(port: int, target: int, dies_after: int) -> None:
    """What the proxy's process does."""
    import asyncio

    left = dies_after

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool) -> None:
        nonlocal left
        while block := await reader.read(1 << 16):
            if counted:
                left -= len(block)
                if left < 0:
                    os._exit(1)
            writer.write(block)
            await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(copy(reader, back, True), copy(there, writer, False), return_exceptions=True)

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    forward(*map(int, sys.argv[1:]))
