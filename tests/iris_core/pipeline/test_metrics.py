"""Metrics and specs are read back from manifests, also from those of older and newer versions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from iris_core.common.errors import ConfigError, StoreError
from iris_core.common.files import read_sealed, seal
from iris_core.config import VerificationPart
from iris_core.pipeline.logged import flatten, iteration_metrics
from iris_core.pipeline.metrics import OF_STAGE, EvaluateMetrics, TrainMetrics, stage_metrics
from iris_core.pipeline.specs import EvaluateSpec, TrainSpec
from iris_core.pipeline.verifier import verifier_digest
from iris_core.reporting.page import write_report
from iris_core.reporting.summary import rows
from iris_core.store import Manifest, Metrics
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.unit


@pytest.fixture
def small(tmp_path: Path) -> SmallExperiment:
    made = SmallExperiment(tmp_path, [0.3])
    made.initial()
    made.iterations()
    return made


def manifest(small: SmallExperiment, stage: str) -> Manifest:
    found = small.store.manifest(f"iteration-0/{stage}")
    assert found is not None
    return found


def rewrite(found: Manifest, **parts: Any) -> None:
    """Changes parts of a manifest on the disk, as another version would have written them."""
    file = found.folder / "manifest.json"
    content = read_sealed(file)
    assert content is not None
    file.write_text(seal({**content, **parts}), encoding="utf-8")


def test_every_stage_reads_back_what_it_wrote(small: SmallExperiment) -> None:
    for stage in ("generate", "train", "evaluate", "schedule"):
        found = manifest(small, stage)
        metrics = stage_metrics(stage, found)
        assert type(metrics) is OF_STAGE[stage]
        assert metrics.model_dump(mode="json") == found.metrics
    assert stage_metrics("slow", manifest(small, "train")) == Metrics()


def test_a_number_that_is_none_is_null_in_a_manifest_and_not_logged(small: SmallExperiment) -> None:
    held = manifest(small, "train").metrics
    held["heldout"]["annotated_logprob_per_token"] = {"value": None, "low": None, "high": None}
    held["movement"]["training_margin"] = None
    rewrite(manifest(small, "train"), metrics=held)
    found = TrainMetrics.of(manifest(small, "train"))
    assert math.isnan(found.heldout.annotated_logprob_per_token.value)
    assert found.movement.training_margin is None
    numbers = iteration_metrics({"train": manifest(small, "train")})
    assert numbers["heldout/opponent_annotated_logprob_per_token"] == pytest.approx(-1.7)
    assert numbers["movement/heldout_margin_low"] == pytest.approx(0.2)
    assert not [name for name in numbers if "/annotated_logprob" in name or "training_margin" in name]


def test_a_report_is_made_of_an_older_and_of_a_newer_store(small: SmallExperiment) -> None:
    """Optional fields are missing, unknown ones are there, and a spec lacks what its version did not have."""
    scored, trained = manifest(small, "evaluate"), manifest(small, "train")
    older = {name: scored.metrics[name] for name in ("average", "benchmarks")}
    del older["average"]["stderr"]
    rewrite(scored, metrics=older, spec={name: v for name, v in scored.spec.items() if name != "template_date"})
    rewrite(trained, metrics={**trained.metrics, "later": 1}, spec={**trained.spec, "later": {"a": 1}})
    assert EvaluateMetrics.of(manifest(small, "evaluate")).heldout is None
    assert EvaluateSpec.of(manifest(small, "evaluate")).template_date is None
    assert TrainSpec.of(manifest(small, "train")).order == 2.0
    last = rows(small.store)[-1]
    assert (last.average, last.stderr, last.exact_match) == (pytest.approx(0.3), None, None)
    data = json.loads(write_report(small.store).with_suffix(".json").read_text(encoding="utf-8"))
    assert data["models"][1]["gap"] == pytest.approx([0.8, 6, 8])


def test_what_does_not_fit_is_named_in_one_line(small: SmallExperiment) -> None:
    found = manifest(small, "train")
    rewrite(found, metrics={**found.metrics, "gap": {**found.metrics["gap"], "ess": "many"}})
    with pytest.raises(StoreError) as caught:
        rows(small.store)
    line = str(caught.value)
    assert line.startswith(f"{found.folder}/manifest.json: metrics.gap.ess: ")
    assert line.endswith(f"it is damaged, or of another version of IRIS: delete {found.folder} and run again")
    assert "\n" not in line


def test_a_spec_with_another_type_is_named(small: SmallExperiment) -> None:
    found = manifest(small, "train")
    rewrite(found, spec={**found.spec, "order": "high"})
    with pytest.raises(StoreError, match=r"manifest\.json: spec\.order: .*another version of IRIS"):
        TrainSpec.of(manifest(small, "train"))


def test_a_recipe_is_flat_parameters_without_credentials() -> None:
    assert flatten({"a": {"b": 1, "c": [1, "x"]}, "d": None, "e": "http://u:p@h"}) == {
        "a.b": "1",
        "a.c": '[1, "x"]',
        "d": "null",
        "e": "http://***@h",
    }


@pytest.fixture
def judged(tmp_path: Path) -> SmallExperiment:
    made = SmallExperiment(tmp_path, [0.3], verification={"kind": "math"}, generation={"samples": 4})
    made.initial()
    made.iterations()
    return made


def test_mlflow_names_the_verifier_and_has_the_shares_of_verdicts(judged: SmallExperiment) -> None:
    found = iteration_metrics({stage: manifest(judged, stage) for stage in ("generate", "evaluate")})
    assert found["accuracy/math"] == pytest.approx(0.3)
    assert found["accuracy/math_low"] == pytest.approx(0.2)
    assert "exact_match" not in found
    assert found["generate/right"] == 20
    assert found["generate/right_share"] == pytest.approx(20 / 32)
    assert found["generate/mixed_share"] == pytest.approx(6 / 8)


def test_training_gets_the_verdicts_on_its_responses(judged: SmallExperiment) -> None:
    spec = TrainSpec.of(manifest(judged, "train"))
    assert spec.verdicts == [manifest(judged, "generate").artifact("verdicts")]
    assert (spec.wrong_samples, spec.baseline) == ("first-token", 0.5)
    for form in ("wrong_samples", "baseline"):  # None: of a version with another one
        assert spec.key() != spec.model_copy(update={form: None}).key()
    assert spec.objective.verified is True


def test_files_of_a_verifier_enter_keys_by_content(small: SmallExperiment, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    spec = EvaluateSpec.of(manifest(small, "evaluate"))

    def key(file: str) -> str:
        verification = VerificationPart(kind="json_schema", schema_path=str(tmp_path / file))
        changed = {"verification": verification, "verifier_digest": verifier_digest(verification)}
        return spec.model_copy(update=changed).key()

    assert key("a.json") == key("b.json") != spec.key()
    before = key("a.json")
    (tmp_path / "a.json").write_text('{"type": "object"}')
    assert key("a.json") != before
    with pytest.raises(ConfigError, match=r"verification.schema_path: there is no file .*c.json: give the file"):
        key("c.json")
    with pytest.raises(ConfigError, match=r"verification.databases: .* holds no <db_id>/<db_id>.sqlite"):
        verifier_digest(VerificationPart(kind="sql", databases=str(tmp_path)))
