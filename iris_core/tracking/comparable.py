"""What two scores must share to stand in one column or to be compared: all that decides them but the model.

By manifests alone, with the standard library alone: the table of an experiment is read in any process.
"""

from __future__ import annotations

from typing import Any

from iris_core.store import Manifest

MODEL_OR_MACHINE = ("policy", "versions", "execution", "seed", "trust_remote_code")
BENCHMARKS_ONLY = ("data", "evaluation", "chat_template_kwargs", "template_date")


def benchmark_protocols(evaluated: Manifest) -> dict[str, str]:
    """The protocol digest of each benchmark: task, items, shots, templates, limits, harness version."""
    scores = evaluated.metrics.get("benchmarks", {})
    return {name: score["protocol"] for name, score in scores.items()}


def exact_match_settings(evaluated: Manifest) -> dict[str, Any]:
    """What exact match on held-out prompts depends on: prompts (as tokens), answer pattern, engine, longest answer, dtype."""
    left_out = (*MODEL_OR_MACHINE, *BENCHMARKS_ONLY)
    settings = {name: value for name, value in evaluated.spec.items() if name not in left_out}
    return settings | {
        "pairs": evaluated.spec["pairs"]["digest"],
        "backend": evaluated.spec["evaluation"]["backend"],
    }


def logprob_settings(trained: Manifest) -> dict[str, Any]:
    """What held-out log-probabilities depend on: the pairs with their tokens, and the dtype."""
    return {"pairs": trained.spec["pairs"]["digest"], "dtype": trained.spec["dtype"]}
