"""The compose file protects its servers as `iris up` does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from deployments.services import CHECKOUT

pytestmark = pytest.mark.unit
DOCKER = CHECKOUT / "docker"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return services


def test_ports_are_bound_to_this_machine(compose: dict[str, Any]) -> None:
    ports = [port for service in compose.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prefect_requires_credentials_and_csrf_tokens(compose: dict[str, Any]) -> None:
    settings = compose["prefect"]["environment"]
    assert settings["PREFECT_SERVER_API_AUTH_STRING"].startswith("iris:${PREFECT_PASSWORD:?")
    assert settings["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    origins = settings["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"].split(",")
    assert {re.sub(r":\$.*", "", origin) for origin in origins} == {"http://127.0.0.1", "http://localhost"}
    for name in ("worker", "worker-gpu"):
        known = compose[name]["environment"]["PREFECT_API_AUTH_STRING"]
        assert known == settings["PREFECT_SERVER_API_AUTH_STRING"]


def test_both_servers_check_the_host(compose: dict[str, Any]) -> None:
    prefect = compose["prefect"]
    assert "prefect_app:create" in prefect["command"]
    source = prefect["volumes"][0].partition(":")[0]
    assert (DOCKER / source).resolve() == CHECKOUT / "deployments" / "prefect_app.py"
    assert prefect["environment"]["IRIS_PREFECT_HOSTS"] == "${PREFECT_ALLOWED_HOSTS:-prefect,localhost,127.0.0.1}"
    (hosts,) = (part for part in compose["mlflow"]["command"] if "--allowed-hosts" in part)
    assert hosts.endswith(":-mlflow:5000,localhost:*,127.0.0.1:*}")


def test_every_secret_is_in_the_example_and_none_in_a_command(compose: dict[str, Any]) -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "compose.yaml").read_text()))
    example = (DOCKER / ".env.example").read_text()
    assert "PREFECT_PASSWORD" in asked
    assert all(re.search(rf"^{name}=", example, re.MULTILINE) for name in asked)
    assert not any("PASSWORD}" in str(service.get("command")) for service in compose.values())


def test_the_worker_is_our_own() -> None:
    assert "exec python -m deployments.worker" in (DOCKER / "worker.sh").read_text()
