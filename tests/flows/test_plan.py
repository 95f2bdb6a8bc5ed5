"""The plan at the start of a run: shown as an artifact, and a refusal before generation starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from flows.iris import iris
from iris_core.common.errors import ConfigError
from iris_core.config import parse_experiment
from iris_core.store import Store
from tests.flows.test_compare import settings
from tests.prefect_server import new_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with new_server():
        yield


def test_a_run_that_does_not_fit_ends_before_generation(
    prefect_server: None, tiny_model: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs of 900 MiB: CUDA alone takes most of that."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor _ in 1 2; do echo 'GPU-1, Small, 575.1, 900, 9.0'; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    experiment = parse_experiment({**settings(tmp_path, tiny_model, pairs_file), "name": "small"})
    with pytest.raises(ConfigError, match=r"^training needs .* on each GPU of 2 × Small with 1 GB, \d+% of it"):
        iris(experiment)
    store = Store(Path(experiment.store), experiment.name)
    assert store.manifest("prepare")
    assert [path.name for path in store.home.iterdir() if path.is_symlink()] == ["prepare"]
    with get_client(sync_client=True) as client:
        (shown,) = [each for each in client.read_artifacts() if each.type == "markdown"]
    assert shown.key == "small-plan"
    assert "What the run needs of 2 × Small with 1 GB" in str(shown.data)
    assert "| each GPU: adapter |" in str(shown.data)
