"""What a registered model says about itself: the key that identifies it, its tags and its description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from iris_core.common.digest import json_digest
from iris_core.common.markup import markdown, plain
from iris_core.common.redaction import redact
from iris_core.pipeline.metrics import EvaluateMetrics, TrainMetrics
from iris_core.pipeline.specs import RegisterSpec, TrainSpec
from iris_core.store import Manifest, Metrics, Policy
from iris_core.tracking import registry
from iris_core.tracking.measures import policy_digest

LONGEST_TAG = 5000  # characters; MLflow takes 8,000 bytes
USE = """```python
from iris_core.load import load_model

model, tokenizer = load_model("models:/{name}@champion")
```"""


def content_key(spec: RegisterSpec, manifests: dict[str, Manifest]) -> str:
    """Identifies an iteration: its place, its model and the keys of the stages that made and scored it.

    Paths do not count. Nor does the schedule, whose key changes when iterations are added, nor what was prepared, which
    the keys of the other stages contain.
    """
    policy = spec.policy
    return json_digest(
        {
            "experiment": spec.experiment,
            "iteration": spec.iteration,
            "policy": [policy.model.digest, policy.adapter.digest if policy.adapter else None],
            "stages": {
                name: manifest.key for name, manifest in manifests.items() if name not in ("schedule", "prepare")
            },
        }
    )


def version_key(spec: RegisterSpec, manifests: dict[str, Manifest]) -> str:
    """Identifies a version. The initial model counts by its weights alone, however and whenever it was scored."""
    if spec.iteration is None:
        return json_digest({"initial": spec.policy.model.digest})
    return content_key(spec, manifests)


def version_tags(
    spec: RegisterSpec, manifests: dict[str, Manifest], run: str, known: Sequence[ModelVersion]
) -> dict[str, str]:
    """The tags of a version: scores, order, gap, lineage, digests. The most important come first.

    Args:
        spec: of the stage `register`.
        manifests: the stages behind it.
        run: the id of its MLflow run.
        known: the versions that exist, oldest first.
    """
    tags = {
        "iteration": registry.INITIAL if spec.iteration is None else spec.iteration,
        **_score_tags(manifests.get("evaluate")),
        **_training_tags(manifests.get("train"), known),
        "warnings": all_warnings(manifests) or None,
        "experiment": spec.experiment,
        "dtype": spec.dtype,
        "model_path": spec.policy.model.path,
        "model_digest": spec.policy.model.digest,
        "adapter_digest": spec.policy.adapter.digest if spec.policy.adapter else None,
        registry.RUN: run,
        registry.KEY: version_key(spec, manifests),
    }
    return {name: plain(str(value)) for name, value in tags.items() if value is not None}


def describe(name: str, tags: dict[str, str]) -> str:
    """A version in a sentence, and how to use it."""
    label = f"{markdown(tags['label'])} average" if "label" in tags else "benchmark average"
    score = f", {label} {100 * float(tags['average']):.1f} %" if "average" in tags else ""
    gap = f", gap {tags['gap']} (ESS {tags['gap_ess']} of {tags['gap_pairs']})" if "gap" in tags else ""
    trained = f"Iteration {tags['iteration']}: order {tags.get('order')}{gap}{score}."
    first = f"The initial model, before self-play{score}."
    return f"{first if tags['iteration'] == registry.INITIAL else trained}\n\n{USE.format(name=name)}"


def all_warnings(manifests: dict[str, Manifest]) -> str:
    """The warnings of the stages, a line each, as many as a tag can hold. The manifests have all."""
    lines = [f"{stage}: {text}" for stage, manifest in manifests.items() for text in Metrics.of(manifest).warnings]
    text = plain(redact("\n".join(lines)))
    return text if len(text) <= LONGEST_TAG else f"{text[:LONGEST_TAG]} …"


def spread(name: str, value: Any) -> dict[str, Any]:
    """{"gap": {"value": 1, "low": 0}} as gap, gap_low; a plain number under its name."""
    if not isinstance(value, dict):
        return {name: value}
    return {name if key == "value" else f"{name}_{key}": number for key, number in value.items()}


def _score_tags(evaluated: Manifest | None) -> dict[str, Any]:
    if evaluated is None:
        return {}
    found = EvaluateMetrics.of(evaluated)
    average = {"average": found.average.value, "average_stderr": found.average.stderr} if found.average else {}
    return {**average, "label": found.label}


def _training_tags(trained: Manifest | None, known: Sequence[ModelVersion]) -> dict[str, Any]:
    if trained is None:
        return {}
    spec = TrainSpec.of(trained)
    gap = spread("gap", TrainMetrics.of(trained).gap.model_dump())
    return {
        "order": spec.order,
        **{name: f"{value:.6g}" for name, value in gap.items()},
        "parent_version": _version_of(spec.policy, known),
        registry.OPPONENT: _weights(spec.opponent),
    }


def _version_of(policy: Policy, known: Sequence[ModelVersion]) -> str:
    """The newest version that holds `policy`, by its content; the digest of `policy` if there is none."""
    wanted = _weights(policy)
    return next(
        (str(version.version) for version in reversed(known) if registry.weights_of(version) == wanted),
        f"sha256:{(policy.adapter or policy.model).digest}",
    )


def _weights(policy: Policy) -> str:
    return policy_digest(policy.model.digest, policy.adapter.digest if policy.adapter else None)
