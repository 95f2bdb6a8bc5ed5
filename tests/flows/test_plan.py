"""The plan at the start of a run: shown as an artifact, and a refusal before generation starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from deployments.demo import RECIPES
from flows.iris import iris, needs_of
from iris_core.common.errors import ConfigError
from iris_core.config import Packing, parse_experiment
from iris_core.config.recipe import load_recipe
from iris_core.pipeline.metrics import PrepareMetrics
from iris_core.pipeline.plan import Prepared
from iris_core.pipeline.sizes import Sizes
from iris_core.reporting.machine import parse_machine
from iris_core.reporting.resources import Resources
from iris_core.store import Artifact, Policy, Store
from tests.flows.test_compare import settings
from tests.prefect_server import new_server

SIZES = Sizes(
    parameters=7_600_000_000,
    adapter=40_000_000,
    matrices=7_000_000_000,
    layers=44,
    matrices_in_layer=146_000_000,
    hidden=3072,
    inner=12288,
)


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with new_server():
        yield


def needs(packing: Packing, **changes: str) -> Resources:
    """Of a run on eight GPUs whose `prepare` has found that `packing`, of a recipe that leaves it open."""
    experiment = load_recipe(
        RECIPES / "zephyr-7b-ultrachat-50k.yaml", {f"training.{name}": value for name, value in changes.items()}
    )
    assert experiment.training.packing == "auto"
    nowhere = Artifact(path=Path("/nowhere"), digest="0" * 64)
    prepared = Prepared(
        initial=Policy(model=nowhere), pairs=nowhere, dtype="bfloat16", stop_token_ids=[2], packing=packing
    )
    found = PrepareMetrics(train_pairs=1000, heldout_pairs=10, packing=packing, sizes=SIZES)
    return needs_of(experiment, prepared, found, parse_machine("8xH100-80GB"))


@pytest.mark.unit
def test_rows_are_those_that_prepare_found() -> None:
    """Without packed rows the model cannot be shared: 12 bytes a parameter are 91 GB on each GPU."""
    packed, separate = needs("packed"), needs("separate")
    packed.check()
    assert packed.sharding == "full"
    assert separate.sharding == "none"
    assert separate.memory.held["weights"] == 4 * 7_600_000_000
    with pytest.raises(
        ConfigError,
        match=r"80 GB, 1\d\d% of it, where 90% may be used: to make it fit, set training.method: lora \(\d+%\)$",
    ):
        separate.check()


@pytest.mark.unit
@pytest.mark.parametrize("sharding", ["full", "hybrid"])
def test_sharding_that_the_rows_do_not_allow_is_refused_before_generation(sharding: str) -> None:
    needs("packed", sharding=sharding)
    with pytest.raises(
        ConfigError, match=f"training.sharding: {sharding} needs packed rows.*set training.sharding: none$"
    ):
        needs("separate", sharding=sharding)


@pytest.mark.integration
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
