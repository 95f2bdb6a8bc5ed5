"""What MLflow logs of one iteration: parameters, data sets and numbers, by the names they have there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from iris_core.common.markup import plain
from iris_core.common.redaction import redact
from iris_core.pipeline.comparable import verifier_of
from iris_core.pipeline.lineage import spread
from iris_core.pipeline.metrics import EvaluateMetrics, GenerateMetrics, TrainMetrics
from iris_core.pipeline.specs import RegisterSpec, TrainSpec
from iris_core.store import Artifact, Manifest, Spec


class Input(NamedTuple):
    """A data set that a stage read: its name in MLflow, its content, and counts that describe it."""

    name: str
    artifact: Artifact
    profile: dict[str, Any]


def recipe_params(spec: RegisterSpec) -> dict[str, str]:
    """The recipe as flat parameters, without credentials."""
    return flatten(yaml.safe_load(spec.recipe))


def stage_params(manifests: dict[str, Manifest]) -> dict[str, str]:
    """What only this iteration has: the order and learning rate it was trained with, and library versions."""
    params: dict[str, str] = {}
    if trained := manifests.get("train"):
        spec = TrainSpec.of(trained)
        params = {"order": str(spec.order), "learning_rate": str(spec.learning_rate)}
    for manifest in manifests.values():
        params |= {f"version.{name}": text for name, text in Spec.of(manifest).versions.items()}
    return params


def inputs(manifests: dict[str, Manifest]) -> list[Input]:
    """The data sets that training read: the annotated pairs and the synthetic responses; none without training."""
    trained = manifests.get("train")
    if trained is None:
        return []
    spec, counts = TrainSpec.of(trained), _numbers(_generated(manifests))
    found = [Input("annotated", spec.pairs, {})]
    found += [
        Input("synthetic" if age == 0 else "synthetic-previous", artifact, counts if age == 0 else {})
        for age, artifact in enumerate(spec.synthetic)
    ]
    return found


def iteration_metrics(manifests: dict[str, Manifest]) -> dict[str, float]:
    """One iteration's numbers by the names they have in MLflow."""
    numbers: dict[str, Any] = {}
    if trained := manifests.get("train"):
        numbers |= _training(trained)
    if evaluated := manifests.get("evaluate"):
        numbers |= _scores(evaluated)
    numbers |= {f"generate/{name}": value for name, value in _generated(manifests).items()}
    numbers |= {f"seconds/{name}": manifest.seconds for name, manifest in manifests.items()}
    return _numbers(numbers)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and texts: {"training": {"epochs": 2}} gives {"training.epochs": "2"}."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[prefix + name] = plain(redact(text))
    return flat


def _training(trained: Manifest) -> dict[str, Any]:
    found = TrainMetrics.of(trained)
    numbers = {"order": TrainSpec.of(trained).order, **spread("gap", found.gap.model_dump())}
    for group, part in (("heldout", found.heldout), ("movement", found.movement), ("train", found.train)):
        for name, value in part.model_dump().items():
            numbers |= spread(f"{group}/{name}", value)
    return numbers


def _scores(evaluated: Manifest) -> dict[str, Any]:
    found = EvaluateMetrics.of(evaluated)
    kind, numbers = found.label or "benchmark", dict[str, Any]()
    for name, score in found.benchmarks.items():
        numbers |= spread(f"{kind}/{name}", {"value": score.value, "stderr": score.stderr})
    if found.average:
        numbers |= spread(f"{kind}/average", found.average.model_dump())
    if found.heldout:
        verifier = verifier_of(evaluated)
        name = f"accuracy/{verifier}" if verifier else "exact_match"
        numbers |= spread(name, found.heldout.exact_match.model_dump())
    return numbers


def _generated(manifests: dict[str, Manifest]) -> dict[str, Any]:
    if "generate" not in manifests:
        return {}
    found = GenerateMetrics.of(manifests["generate"])
    return found.model_dump() | {f"{name}_share": share for name, share in found.shares.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that are finite numbers."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
