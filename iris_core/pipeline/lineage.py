"""What a registered model tells about itself: what it is recognised by, its tags and its description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from iris_core.common.digest import json_digest
from iris_core.common.markup import markdown, plain
from iris_core.common.redaction import redact
from iris_core.pipeline.specs import RegisterSpec
from iris_core.store import Manifest
from iris_core.tracking import registry
from iris_core.tracking.measures import policy_digest

LONGEST_TAG = 5000  # characters; MLflow takes 8,000 bytes
USE = """```python
from iris_core.load import load_model

model, tokenizer = load_model("models:/{name}@champion")
```"""


def content_key(spec: RegisterSpec, manifests: dict[str, Manifest]) -> str:
    """What an iteration is recognised by: its place, its model and the keys of the stages that made and scored it.

    Not by paths, nor by the schedule, whose key changes when iterations are added, nor by what was prepared, which the
    other stages build on.
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
    """What a version is recognised by; the initial model by its weights alone, however and whenever it was scored."""
    if spec.iteration is None:
        return json_digest({"initial": spec.policy.model.digest})
    return content_key(spec, manifests)


def version_tags(
    spec: RegisterSpec, manifests: dict[str, Manifest], run: str, known: Sequence[ModelVersion]
) -> dict[str, str]:
    """What a version tells about itself: scores, order, gap, lineage, digests. The most telling come first.

    Args:
        spec: of the stage `register`.
        manifests: the stages behind it.
        run: the id of its MLflow run.
        known: the versions that there are, oldest first.
    """
    trained, evaluated = manifests.get("train"), manifests.get("evaluate")
    average = (evaluated.metrics.get("average") if evaluated else None) or {}
    gap = trained.metrics["gap"] if trained else {}
    tags = {
        "iteration": registry.INITIAL if spec.iteration is None else spec.iteration,
        "average": average.get("value"),
        "average_stderr": average.get("stderr"),
        "label": evaluated.metrics.get("label") if evaluated else None,
        "order": trained.spec["order"] if trained else None,
        **{name: f"{value:.6g}" for name, value in spread("gap", gap).items()},
        "warnings": warnings_of(manifests) or None,
        "parent_version": _version_of(trained.spec["policy"], known) if trained else None,
        "experiment": spec.experiment,
        "dtype": spec.dtype,
        "model_path": spec.policy.model.path,
        "model_digest": spec.policy.model.digest,
        "adapter_digest": spec.policy.adapter.digest if spec.policy.adapter else None,
        registry.OPPONENT: _weights(trained.spec["opponent"]) if trained else None,
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


def warnings_of(manifests: dict[str, Manifest]) -> str:
    """The warnings of the stages, a line each, as far as a tag can hold them; the manifests have all."""
    lines = [
        f"{stage}: {text}" for stage, manifest in manifests.items() for text in manifest.metrics.get("warnings", [])
    ]
    text = plain(redact("\n".join(lines)))
    return text if len(text) <= LONGEST_TAG else f"{text[:LONGEST_TAG]} …"


def spread(name: str, value: Any) -> dict[str, Any]:
    """{"gap": {"value": 1, "low": 0}} as gap, gap_low; a plain number as itself."""
    if not isinstance(value, dict):
        return {name: value}
    return {name if key == "value" else f"{name}_{key}": number for key, number in value.items()}


def _version_of(policy: dict[str, Any], known: Sequence[ModelVersion]) -> str:
    """The version that holds `policy` (from a spec), by its content; its digest where there is none."""
    wanted = _weights(policy)
    digest = (policy["adapter"] or policy["model"])["digest"]
    return next(
        (str(v.version) for v in reversed(known) if registry.weights_of(v) == wanted),
        f"sha256:{digest}",
    )


def _weights(policy: dict[str, Any]) -> str:
    adapter = policy["adapter"]
    return policy_digest(policy["model"]["digest"], adapter["digest"] if adapter else None)
