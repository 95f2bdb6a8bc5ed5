"""The files in deployments/ray are what Ray and KubeRay accept, and fit the image and the versions of this project."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

pytest.importorskip("ray")
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deployments" / "ray"
SCHEMA = json.loads((ROOT / "tests" / "fixtures" / "kuberay_raycluster.json").read_text())

pytestmark = pytest.mark.unit


@pytest.fixture
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FILES / "kuberay.yaml").read_text())
    return loaded


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]]


def test_kuberay_accepts_the_manifest(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, SCHEMA)


@pytest.mark.parametrize("broken", ["image", "resources", "livenessProbe"])
def test_a_word_that_kuberay_does_not_know_is_found(manifest: dict[str, Any], broken: str) -> None:
    container = manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container[f"{broken}s"] = container.pop(broken)
    with pytest.raises(jsonschema.ValidationError, match=f"{broken}s"):
        jsonschema.validate(manifest, SCHEMA)


def test_the_manifest_asks_for_a_token_and_for_the_version_in_the_lock(manifest: dict[str, Any]) -> None:
    assert manifest["spec"]["authOptions"] == {"mode": "token"}
    assert manifest["spec"]["rayVersion"] == version("ray")


def test_every_pod_has_the_image_of_the_compose_file_and_the_store(manifest: dict[str, Any]) -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    images = {service["image"] for service in services.values()}
    for group in groups(manifest):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] in images
        assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]


def test_probes_ask_ports_that_ray_listens_at(manifest: dict[str, Any]) -> None:
    """KubeRay's own probes need Ray's dashboard."""
    head, worker = groups(manifest)
    for group, port in ((head, 6379), (worker, int(worker["rayStartParams"]["node-manager-port"]))):
        (container,) = group["template"]["spec"]["containers"]
        assert container["livenessProbe"]["tcpSocket"]["port"] == port
        assert container["readinessProbe"]["tcpSocket"]["port"] == port


def test_ray_up_accepts_the_cluster_file() -> None:
    config = prepare_config(yaml.safe_load((FILES / "cluster.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"]["local.cluster.node"]["min_workers"] == 1
    for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert start.startswith("RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ")
