"""The address of a Ray cluster: what is refused before Ray itself tries for minutes."""

from __future__ import annotations

import socket

import pytest

from iris_core.common.errors import ConfigError, ServiceError
from iris_core.execution import ray_address
from iris_core.execution.ray_address import address

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "find_spec", lambda name: name)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_the_recipe_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address(None) == "auto"
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", there)
        assert address(None) == there
        monkeypatch.setenv("RAY_ADDRESS", "nonsense")
        assert address(there) == there


@pytest.mark.parametrize("given", ["ray://127.0.0.1:10001", "elsewhere", ":6379", "host:", "host:ray"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(ConfigError, match=f"ray_address: {given} is no address of a Ray cluster: give `host:6379`"):
        address(given)


def test_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ServiceError, match=rf"no Ray cluster answers at 127\.0\.0\.1:{port} .*: start it") as raised:
        address(f"127.0.0.1:{port}")
    assert raised.value.retryable  # it may be on its way


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Ray is not installed: install `iris\[ray\]`, or set the launcher to local"):
        address("127.0.0.1:6379")
