"""What the flows check before anything heavy starts, and how an experiment's folder is claimed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from flows.checks import (
    HOME_FOLDERS,
    at_once,
    check_benchmark,
    check_services,
    claimed,
    keep_caches,
)
from iris_core.common.errors import (
    ConfigError,
    DataError,
    EvaluationError,
    ModelError,
    ServiceError,
    StoreError,
)
from iris_core.config import Experiment, parse_experiment
from iris_core.config.recipe import load_recipe
from iris_core.generation import backends
from iris_core.pipeline.plan import Prepared
from iris_core.store import Policy
from iris_core.store.experiment import RECIPE
from tests.iris_core.fake_hub import FakeHub, fake_hub
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]


def changed(small: SmallExperiment, **settings: object) -> SmallExperiment:
    content = {**small.experiment.model_dump(), **settings}
    small.experiment = parse_experiment(content)
    return small


@pytest.fixture
def small(tmp_path: Path) -> SmallExperiment:
    made = SmallExperiment(tmp_path, [0.3, 0.4])
    made.initial()
    made.iterations()
    return made


def test_services_at_hand(small: SmallExperiment) -> None:
    assert check_services(small.experiment).home == small.store.home


def test_mlflow_that_does_not_answer(small: SmallExperiment) -> None:
    changed(small, tracking={"uri": "http://127.0.0.1:9"})
    with pytest.raises(ServiceError, match=r"tracking\.uri"):
        check_services(small.experiment)


def test_store_that_cannot_be_written(small: SmallExperiment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    changed(small, store=str(tmp_path / "file"))
    with pytest.raises(StoreError, match="set `store` to another folder"):
        check_services(small.experiment)


def test_a_ray_cluster_that_does_not_answer(small: SmallExperiment) -> None:
    pytest.importorskip("ray")
    changed(small, execution={"launcher": "ray", "nodes": 2, "ray_address": "127.0.0.1:9"})
    with pytest.raises(ServiceError, match=r"execution\.ray_address: no Ray cluster answers at 127\.0\.0\.1:9"):
        check_services(small.experiment)


def test_benchmark_data_that_is_missing(small: SmallExperiment) -> None:
    changed(small, evaluation={"data_dir": "/nowhere"})
    with pytest.raises(EvaluationError, match=r"evaluation\.data_dir: there is no folder /nowhere"):
        check_services(small.experiment)


def on_hub(small: SmallExperiment, **settings: object) -> Experiment:
    """The experiment with its model, its data and a benchmark on the hub."""
    parts = {
        "model": {"path": "acme/model-2.5"},
        "data": {"path": "acme/pairs-1.0"},
        "evaluation": {"benchmarks": ["gsm8k", "gpqa"], "limit": 10},
    }
    return changed(small, **parts, **settings).experiment


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "iris-cache"))
    with fake_hub(monkeypatch, tmp_path / "cache") as served:
        for name in (
            "models/acme/model-2.5",
            "datasets/acme/pairs-1.0",
            "datasets/openai/gsm8k",
            "datasets/Idavidrein/gpqa",
        ):
            served.add(name)
        yield served


def test_everything_is_on_the_hub(small: SmallExperiment, served: FakeHub) -> None:
    check_services(on_hub(small))
    assert {path.split("/", 2)[2].removesuffix("/revision/main") for path in served.requests} == {*served.repositories}


@pytest.mark.parametrize(
    ("repository", "settings", "error", "message"),
    [
        ("models/acme/model-2.5", {"refusal": "gated"}, ModelError, "acme/model-2.5 is gated: ask for access"),
        ("models/acme/model-2.5", {"refusal": "missing"}, ModelError, "no model acme/model-2.5"),
        ("datasets/acme/pairs-1.0", {"refusal": "private"}, DataError, "no data set acme/pairs-1.0"),
        ("datasets/openai/gsm8k", {"refusal": "missing"}, EvaluationError, "evaluation.benchmarks: .*openai/gsm8k"),
        ("datasets/Idavidrein/gpqa", {"gated": True}, EvaluationError, "Idavidrein/gpqa is gated: ask for access"),
        ("datasets/openai/gsm8k", {"refusal": "limit"}, ServiceError, "limits the rate"),
    ],
)
def test_the_hub_refuses(
    small: SmallExperiment,
    served: FakeHub,
    repository: str,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    served.add(repository, **settings)
    with pytest.raises(error, match=message):
        check_services(on_hub(small))


def test_no_network(small: SmallExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_hub(monkeypatch, tmp_path / "cache"):
        pass  # nothing listens there any more
    with pytest.raises(ServiceError, match="cannot be reached for the model acme/model-2.5"):
        check_services(on_hub(small))


def test_offline_with_nothing_in_the_cache(
    small: SmallExperiment, served: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match="openai/gsm8k .*is not complete in the cache"):
        check_benchmark("openai/gsm8k")
    (tmp_path / "iris-cache" / "datasets" / "hub" / "openai___gsm8k").mkdir(parents=True)
    check_benchmark("openai/gsm8k")
    with pytest.raises(ModelError, match="acme/model-2.5 .*is not complete in the cache"):
        check_services(on_hub(small))
    assert not served.requests


def test_what_gives_no_answer_is_not_waited_for() -> None:
    over = threading.Event()
    with pytest.raises(ServiceError, match=r"the hub for x gives no answer within 0\.5 s"):
        at_once({"MLflow": lambda: None, "the hub for x": lambda: over.wait()}, seconds=0.5)
    over.set()


def test_the_first_error_in_order_counts() -> None:
    def fail(text: str) -> None:
        raise ServiceError(text)

    with pytest.raises(ServiceError, match="one"):
        at_once({"a": lambda: fail("one"), "b": lambda: fail("two")})


def test_cache_on_a_mount_that_is_missing(small: SmallExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", "/proc/nope")
    with pytest.raises(ConfigError, match="HF_HOME: the cache /proc/nope cannot be written .*set HF_HOME to"):
        check_services(small.experiment)


def test_cache_that_is_a_file(small: SmallExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="IRIS_CACHE: the cache .*file cannot be written"):
        check_services(small.experiment)


def test_caches_lie_in_the_store_where_home_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in HOME_FOLDERS:
        monkeypatch.setenv(variable, "given")  # so that what is set below is taken back
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HF_HOME", "/given")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    keep_caches(tmp_path / "store")  # can be made
    assert {*HOME_FOLDERS} & {*os.environ} == {"HF_HOME"}
    monkeypatch.setenv("HOME", "/proc/home")
    keep_caches(tmp_path / "store")
    found = {variable: os.environ.get(variable) for variable in HOME_FOLDERS}
    assert found == {
        "HF_HOME": "/given",
        "IRIS_CACHE": f"{tmp_path}/store/.cache/iris",
        "PREFECT_HOME": f"{tmp_path}/store/.prefect",
        "TRITON_CACHE_DIR": f"{tmp_path}/store/.triton/cache",
        "XDG_CACHE_HOME": f"{tmp_path}/store/.cache",
    }


def test_a_mirror_without_a_benchmark(small: SmallExperiment, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "openai" / "gsm8k").mkdir(parents=True)
    changed(small, evaluation={"data_dir": str(tmp_path / "mirror"), "benchmarks": ["gsm8k", "mmlu"]})
    with pytest.raises(
        EvaluationError,
        match=r"evaluation\.data_dir: .* has no data set cais/mmlu: .*--benchmarks mmlu",
    ):
        check_services(small.experiment)


def test_vllm_that_cannot_run_here(small: SmallExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for part, fallback in (("generation", "transformers"), ("evaluation", "hf")):
        changed(small, **{"generation": {}, "evaluation": {"benchmarks": []}, part: {"backend": "vllm"}})
        message = rf"{part}\.backend: vllm is not installed here.*or use `{fallback}`"
        with pytest.raises(ConfigError, match=message):
            check_services(small.experiment)
    monkeypatch.setattr(backends, "version", lambda name: "0.32.0")
    with pytest.raises(ConfigError, match="runs on GPUs, and this machine shows none"):
        backends.check_device("generation.backend", "vllm", "transformers", tmp_path)
    (tmp_path / "nvidia0").touch()
    backends.check_device("generation.backend", "vllm", "transformers", tmp_path)


def test_the_nodes_may_have_gpus_where_this_machine_has_none(
    small: SmallExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: object() if name == "vllm" else find(name, *of))
    monkeypatch.setattr(backends, "version", lambda name: "0.32.0")
    monkeypatch.setattr(backends, "DEVICES", ())
    with pytest.raises(ConfigError, match=r"generation\.backend: .* runs on GPUs, and this machine shows none"):
        check_services(small.experiment)
    with pytest.raises(ServiceError, match="no Ray cluster answers"):
        check_services(changed(small, execution={"launcher": "ray", "ray_address": "127.0.0.1:9"}).experiment)


def test_the_checks_are_light() -> None:
    code = (
        "import sys, flows.checks; print({'torch', 'transformers', 'datasets', 'mlflow', 'lm_eval'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def claim(small: SmallExperiment, prepared: Prepared | None = None) -> None:
    """What a run does that ends at once."""
    with claimed(small.store, small.experiment, prepared or small.prepared):
        pass


def test_claim_keeps_the_recipe_and_the_links(small: SmallExperiment) -> None:
    for _ in range(2):
        claim(small)
    assert load_recipe(small.store.home / RECIPE) == small.experiment
    assert small.store.manifest("iteration-1/train") is not None


def test_other_settings_start_with_an_empty_view(small: SmallExperiment) -> None:
    claim(small)
    before = len(list(small.store.root.glob("objects/*")))
    changed(small, iterations=1)
    claim(small)
    assert small.store.manifest("iteration-0/train") is None
    assert small.store.manifest("initial/evaluate") is None
    assert small.store.manifest("prepare") is not None
    assert len(list(small.store.root.glob("objects/*"))) == before


def test_runs_of_one_recipe_share_the_folder_and_keep_others_out(small: SmallExperiment) -> None:
    first = small.experiment
    with claimed(small.store, first, small.prepared):
        claim(small)
        changed(small, iterations=1)
        with pytest.raises(StoreError, match="with other settings is under way: wait for it to end.*another `name`"):
            claim(small)
        assert load_recipe(small.store.home / RECIPE) == first
        assert small.store.manifest("iteration-0/train") is not None
    claim(small)
    assert load_recipe(small.store.home / RECIPE) == small.experiment


def test_a_run_that_is_killed_keeps_nobody_out(small: SmallExperiment) -> None:
    hold = (
        "import os, sys; from pathlib import Path; from iris_core.store import Store\n"
        "with Store(Path(sys.argv[1]), 'small').one_recipe('other'): print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", hold, str(small.store.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout
        run.stdout.readline()
        with pytest.raises(StoreError, match="is under way"):
            claim(small)
        run.kill()
        run.wait()
        claim(small)


def test_folder_of_another_model(small: SmallExperiment) -> None:
    claim(small)
    model = small.prepared.initial.model.model_copy(update={"digest": "other"})
    initial = Policy(model=model)
    other = small.prepared.model_copy(update={"initial": initial})
    with pytest.raises(StoreError, match="another experiment.*another `name`"):
        claim(small, other)


def test_folder_of_other_data(small: SmallExperiment, tmp_path: Path) -> None:
    claim(small)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "c", "response": "d"}\n')
    with pytest.raises(StoreError, match="data was"):
        claim(small)


def test_missing_data_is_named(small: SmallExperiment, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(DataError, match=r"data\.path: there is no file"):
        claim(small)
