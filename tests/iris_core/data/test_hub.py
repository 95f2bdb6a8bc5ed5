"""What a name on the hub means, and the error of each way in which the hub refuses, against a hub on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from iris_core.common.errors import (
    ConfigError,
    DataError,
    EvaluationError,
    IrisError,
    ModelError,
    ServiceError,
)
from iris_core.config import ModelPart, parse_experiment
from iris_core.data import hub
from iris_core.modeling import loading
from iris_core.pipeline.plan import prepare_spec
from tests.iris_core.fake_hub import FakeHub, fake_hub

pytestmark = pytest.mark.unit
FILES = ["*.json", "*.safetensors"]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch, tmp_path / "cache") as served:
        yield served


def test_the_commit_of_today(served: FakeHub) -> None:
    model = served.add("models/acme/chat-2.5")
    before = hub.resolve_revision("model", "acme/chat-2.5")
    model.version += 1
    assert before != hub.resolve_revision("model", "acme/chat-2.5", "main") == model.commit
    assert hub.resolve_revision("model", "acme/chat-2.5", model.commit) == model.commit


def test_data_sets_and_models_of_one_name_are_two(served: FakeHub) -> None:
    model, data = served.add("models/acme/one"), served.add("datasets/acme/one")
    assert hub.resolve_revision("model", "acme/one") == model.commit
    assert hub.resolve_revision("dataset", "acme/one") == data.commit != model.commit


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        ("gated", ModelError, r"model\.path: acme/x is gated: ask for access at http.*/acme/x, then `hf auth login`"),
        ("private", ModelError, r"no model acme/x on http.*, or it is private: correct the name, or `hf auth login`"),
        ("missing", ModelError, r"model\.path: there is no model acme/x"),
        ("no revision", ModelError, r"model\.revision: acme/x has no revision 'v9': http.*/acme/x/tree/main lists"),
        ("disabled", ModelError, r"refuses acme/x \(403: .*disabled"),
        ("bad token", ModelError, r"refuses the token \(401\) for acme/x: `hf auth login`, or unset HF_TOKEN"),
        ("limit", ServiceError, r"model: .* limits the rate of requests \(429\)"),
        ("busy", ServiceError, r"model: .* fails \(503\) for acme/x: run again later"),
    ],
)
def test_refusals(served: FakeHub, refusal: str, error: type[IrisError], message: str) -> None:
    served.add("models/acme/x", refusal=refusal)
    with pytest.raises(error, match=message) as caught:
        hub.resolve_revision("model", "acme/x", "v9")
    assert "\n" not in str(caught.value)
    if error is ModelError and refusal != "no revision":  # the library tries the others again
        with pytest.raises(error, match=message):
            hub.download("acme/x", "v9", "0" * 40, FILES)


def test_a_gated_model_whose_page_is_public(served: FakeHub) -> None:
    served.add("models/acme/gated", gated=True)
    with pytest.raises(ModelError, match="acme/gated is gated: ask for access"):
        hub.resolve_revision("model", "acme/gated")


def test_errors_are_of_the_part_that_asks(served: FakeHub) -> None:
    with pytest.raises(DataError, match=r"data\.path: there is no data set acme/x"):
        hub.resolve_revision("dataset", "acme/x")
    with pytest.raises(EvaluationError, match=r"evaluation\.benchmarks: there is no data set acme/"):
        hub.resolve_revision("benchmark", "acme/x")


@pytest.mark.parametrize("name", ["models/my/deep/folder", "my model", "a--b", "", ".", "a/b.git"])
def test_what_cannot_be_a_name_is_not_asked_for(served: FakeHub, name: str) -> None:
    with pytest.raises(ModelError, match="is no name on the hub"):
        hub.resolve_revision("model", name)
    assert not served.requests


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_hub(monkeypatch, tmp_path):
        pass  # nothing listens there any more
    with pytest.raises(ServiceError, match=r"hub .* cannot be reached for the model acme/x") as caught:
        hub.resolve_revision("model", "acme/x")
    assert caught.value.retryable


def test_downloaded_once_and_found_offline(served: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = served.add("models/acme/tiny", tiny_model).commit
    folder = hub.download("acme/tiny", None, commit, FILES)
    assert (folder / "config.json").read_bytes() == (tiny_model / "config.json").read_bytes()
    assert folder.name == commit
    served.repositories["models/acme/tiny"].version += 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve_revision("model", "acme/tiny") == commit
    assert hub.resolve_revision("model", "acme/tiny", commit) == commit
    assert hub.download("acme/tiny", None, commit, FILES) == folder
    with pytest.raises(ModelError, match=r"acme/tiny \(revision v1\) is not complete in the cache"):
        hub.resolve_revision("model", "acme/tiny", "v1")
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE forbids to download it"):
        hub.resolve_revision("model", "acme/other")


def test_a_commit_that_was_downloaded_by_a_library_without_a_branch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fake_hub(monkeypatch, tmp_path):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        snapshots = tmp_path / "datasets--acme--data" / "snapshots"
        (snapshots / ("a" * 40)).mkdir(parents=True)
        assert hub.resolve_revision("dataset", "acme/data") == "a" * 40
        (snapshots / ("b" * 40)).mkdir()
        with pytest.raises(DataError, match="not complete in the cache"):  # which of the two?
            hub.resolve_revision("dataset", "acme/data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_only_reads(served: FakeHub, tiny_model: Path, tmp_path: Path) -> None:
    commit = served.add("models/acme/tiny", tiny_model).commit
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match=r"cannot be written at .*/cache.*set HF_HOME"):
        hub.download("acme/tiny", None, commit, FILES)


def test_a_cache_on_a_mount_that_is_missing(served: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = served.add("models/acme/tiny", tiny_model).commit
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/nope/hub")
    with pytest.raises(ConfigError, match=r"cannot be written at /proc/nope.*set HF_HOME"):
        hub.download("acme/tiny", None, commit, FILES)


def test_a_model_that_moved_is_prepared_again(
    served: FakeHub, tiny_model: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = served.add("models/acme/tiny", tiny_model)
    content = {"name": "x", "model": {"path": "acme/tiny"}, "data": {"path": str(pairs_file)}}
    experiment = parse_experiment(content)
    before = prepare_spec(experiment)
    assert before.model_commit == repository.commit
    assert loading.resolve(experiment.model, before.model_commit).name == repository.commit
    repository.version += 1
    after = prepare_spec(experiment)
    assert after.model_commit == repository.commit
    assert after.key() != before.key()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prepare_spec(experiment).key() == before.key()  # what is cached


def test_a_folder_has_no_revision(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.revision: .* is a folder.*leave model\.revision out"):
        loading.resolve(ModelPart(path=str(tiny_model), revision="main"))


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/no-such-model", "file"])
def test_a_path_that_is_no_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(ModelError, match=r"model\.path: there is no folder"):
        loading.resolve(ModelPart(path=path))
