"""Ports for servers that start a moment after their port was chosen."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

PORTS = range(12_000, 32_000)  # Linux gives those from 32768 to connections, which may take a free one at any moment


def free_port() -> int:
    """A port of this machine that nothing uses; drawn anew in each process, whatever `random` was seeded with."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
