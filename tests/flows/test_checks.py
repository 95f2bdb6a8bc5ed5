"""What the flows check before anything heavy starts, and how an experiment's folder is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.checks import RECIPE, check_services, claim
from iris_core.config import parse_experiment
from iris_core.errors import DataError, EvaluationError, ServiceError, StoreError
from iris_core.recipe import load_recipe
from iris_core.store import Policy
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.unit


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


def test_benchmark_data_that_is_missing(small: SmallExperiment) -> None:
    changed(small, evaluation={"data_dir": "/nowhere"})
    with pytest.raises(EvaluationError, match=r"evaluation\.data_dir: there is no folder /nowhere"):
        check_services(small.experiment)


def test_claim_keeps_the_recipe_and_the_links(small: SmallExperiment) -> None:
    for _ in range(2):
        claim(small.store, small.experiment, small.prepared)
    assert load_recipe(small.store.home / RECIPE) == small.experiment
    assert small.store.manifest("iteration-1/train") is not None


def test_other_settings_start_with_an_empty_view(small: SmallExperiment) -> None:
    claim(small.store, small.experiment, small.prepared)
    before = len(list(small.store.root.glob("objects/*")))
    changed(small, iterations=1)
    claim(small.store, small.experiment, small.prepared)
    assert small.store.manifest("iteration-0/train") is None
    assert small.store.manifest("initial/evaluate") is None
    assert small.store.manifest("prepare") is not None
    assert len(list(small.store.root.glob("objects/*"))) == before


def test_folder_of_another_model(small: SmallExperiment) -> None:
    claim(small.store, small.experiment, small.prepared)
    model = small.prepared.initial.model.model_copy(update={"digest": "other"})
    initial = Policy(model=model)
    other = small.prepared.model_copy(update={"initial": initial})
    with pytest.raises(StoreError, match="another experiment.*another `name`"):
        claim(small.store, small.experiment, other)


def test_folder_of_other_data(small: SmallExperiment, tmp_path: Path) -> None:
    claim(small.store, small.experiment, small.prepared)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "c", "response": "d"}\n')
    with pytest.raises(StoreError, match="data was"):
        claim(small.store, small.experiment, small.prepared)


def test_missing_data_is_named(small: SmallExperiment, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(DataError, match=r"data\.path: there is no file"):
        claim(small.store, small.experiment, small.prepared)
