"""What two scores must share to be compared, or to stand in one column: all that decides them but the model."""

from __future__ import annotations

from typing import Any

from iris_core.common.digest import json_digest
from iris_core.pipeline.metrics import EvaluateMetrics
from iris_core.pipeline.specs import VERIFIERS_FILES, EvaluateSpec, TrainSpec
from iris_core.store import Manifest

MODEL_OR_MACHINE = {"policy", "versions", "execution", "seed", "trust_remote_code"}
BENCHMARKS_ONLY = {"data", "evaluation", "chat_template_kwargs", "template_date"}


def exact_match_settings(evaluated: Manifest) -> dict[str, Any]:
    """What exact match, or a verifier's accuracy, on held-out prompts depends on.

    That is the prompts (as tokens), the answer pattern, the verifier, the engine, the longest answer and the dtype.
    """
    spec = EvaluateSpec.of(evaluated)
    left_out: dict[str, Any] = dict.fromkeys(MODEL_OR_MACHINE | BENCHMARKS_ONLY, True)
    settings = spec.model_dump(mode="json", exclude={**left_out, **VERIFIERS_FILES})
    return settings | {"pairs": spec.pairs.digest, "backend": spec.evaluation.backend}


def verifier_of(evaluated: Manifest) -> str | None:
    """The kind of verifier that judged the held-out answers; None where they were compared for exact match."""
    verification = EvaluateSpec.of(evaluated).verification
    return verification.kind if verification.judges else None


def logprob_settings(trained: Manifest) -> dict[str, Any]:
    """What held-out log-probabilities depend on: the pairs with their tokens, and the dtype."""
    spec = TrainSpec.of(trained)
    return {"pairs": spec.pairs.digest, "dtype": spec.dtype}


def evaluation_protocols(evaluated: Manifest) -> dict[str, str]:
    """A digest of what each score of an evaluation depends on: of each benchmark, the average and exact match."""
    found = EvaluateMetrics.of(evaluated)
    protocols = {name: score.protocol for name, score in found.benchmarks.items()}
    if found.average:
        protocols["average"] = found.average.protocol
    if found.heldout:
        protocols["exact_match"] = json_digest(exact_match_settings(evaluated))
    return protocols


def training_protocols(trained: Manifest) -> dict[str, str]:
    """The same for what training measures."""
    return {"logprob": json_digest(logprob_settings(trained))}
