"""The arms of the comparison as settings of IRIS, and their data: the demo's house style."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iris_core.common.files import write_atomic
from iris_core.config import Experiment, parse_experiment
from iris_core.demo.house_style import ANSWER_PATTERN, Pair, annotated_set

ANNOTATED, UNANNOTATED, VALIDATION, TEST = 96, 300, 64, 400
SFT_EPOCHS = 2  # an iteration; the start is the best of the models after each of them on the validation pairs
SFT_ITERATIONS = 4
ITERATIONS = 2
SAMPLES = 4

BASE: dict[str, Any] = {
    "data": {"max_prompt_tokens": 128, "max_response_tokens": 64, "answer_pattern": ANSWER_PATTERN},
    "generation": {"max_new_tokens": 44, "shard_size": 256},
    "training": {
        "method": "lora",
        "epochs": 2,
        "batch_size": 4,
        "tokens_per_batch": 704,
        "optimizer": "adamw",
        "learning_rate": [5e-4, 2.5e-4],
        "checkpoint_every": 24,
    },
    "evaluation": {"benchmarks": [], "initial": False},
    "verification": {"kind": "answer"},
}
# Once over the annotated and unannotated prompts, in batches of eight. Prompts without annotation and without a right
# sample are left out, so that the steps are fewer than the others take; the report says how many.
VERIFIED: dict[str, Any] = {"generation": {"samples": SAMPLES}, "training": {"epochs": 1, "batch_size": 8}}
ARMS: dict[str, dict[str, Any]] = {
    "SFT continued": {"objective": {"name": "sft"}},
    "IRIS, plain": {"objective": {"name": "iris", "verified": False}},
    "RFT": {**VERIFIED, "objective": {"name": "rft"}},
    "IRIS, verified": {**VERIFIED, "objective": {"name": "iris"}},
}
WITH_PROMPTS = ("RFT", "IRIS, verified")


def write_data(seed: int, folder: Path) -> None:
    """Writes annotated pairs, prompts without annotation (with the answer that the verifier needs), and held-out pairs.

    The four sets share no prompt.
    """
    train, heldout = annotated_set(seed, ANNOTATED + UNANNOTATED, VALIDATION + TEST)
    sets = {
        "annotated": train[:ANNOTATED],
        "prompts": train[ANNOTATED:],
        "validation": heldout[:VALIDATION],
        "test": heldout[VALIDATION:],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in sets.items():
        write_atomic(folder / f"{name}.jsonl", "".join(map(_line, pairs)))


def _line(pair: Pair) -> str:
    return json.dumps({"prompt": pair.prompt, "response": pair.response}) + "\n"


def start_experiment(seed: int, model: Path, data: Path, store: Path) -> Experiment:
    """Supervised fine-tuning from the chat model."""
    training = {"epochs": SFT_EPOCHS, "learning_rate": 1e-3}
    own = {"iterations": SFT_ITERATIONS, "objective": {"name": "sft"}, "training": training}
    return _experiment("start", seed, model, data, store, own)


def arm_experiment(arm: str, seed: int, model: Path, data: Path, store: Path) -> Experiment:
    """An arm, from the model that supervised fine-tuning gave."""
    own = {"iterations": ITERATIONS, **ARMS[arm]}
    if arm in WITH_PROMPTS:
        prompts = {"prompts_path": str(data / "prompts.jsonl"), "reference_column": "response"}
        own = _merged(own, {"data": prompts})
    return _experiment(arm.lower().replace(", ", "-").replace(" ", "-"), seed, model, data, store, own)


def test_experiment(seed: int, model: Path, data: Path, store: Path) -> Experiment:
    """The test pairs as held-out ones, for measurement alone."""
    own = {"data": {"heldout_path": str(data / "test.jsonl"), "heldout": TEST}}
    return _experiment("test", seed, model, data, store, own)


def _experiment(name: str, seed: int, model: Path, data: Path, store: Path, own: dict[str, Any]) -> Experiment:
    here = {
        "name": f"{name}-seed-{seed}",
        "seed": seed,
        "store": str(store),
        "model": {"path": str(model)},
        "data": {
            "path": str(data / "annotated.jsonl"),
            "heldout_path": str(data / "validation.jsonl"),
            "heldout": VALIDATION,
        },
    }
    return parse_experiment(_merged(_merged(BASE, here), own), "benchmark")


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `over`, part by part."""
    merged = dict(base)
    for name, value in over.items():
        merged[name] = {**merged[name], **value} if isinstance(merged.get(name), dict) else value
    return merged
