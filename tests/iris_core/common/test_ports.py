"""A port for a server is one that nothing uses, and that no connection takes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from iris_core.common import ports

pytestmark = pytest.mark.unit


def test_a_free_port_is_not_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        free = ports.free_port()
        monkeypatch.setattr(ports, "PORTS", (used, free))
        assert {ports.free_port() for _ in range(20)} == {free}


def test_connections_take_none_of_them() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert first < 32_768 or max(ports.PORTS) < first  # unless somebody has changed the setting
