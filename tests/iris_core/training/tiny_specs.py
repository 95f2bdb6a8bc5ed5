"""Specs of training a tiny model; the stages before it run once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.config import Experiment, ObjectivePart, Packing, parse_experiment
from iris_core.generate import generate
from iris_core.pipeline import plan
from iris_core.pipeline.specs import TrainSpec
from iris_core.prepare import prepare
from iris_core.store import Artifact, Execution, Policy, run_stage
from tests.conftest import build_model

SHARED = 3  # tokens


def specs(folder: Path, model: Path, pairs: Path) -> Callable[..., TrainSpec]:
    """Makes specs from settings of `training`, and from others.

    Args:
        folder: for the stages before training, and for a model whose lm_head is not tied.
        model: a tiny model with a tokenizer.
        pairs: JSON Lines.
    """
    build_model(folder / "untied", tie_word_embeddings=False)
    base = _experiment(model, pairs)
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(base), folder / "prepare", prepare))
    state = prepared.start(base)
    generating = plan.generate_spec(base, prepared, state)
    several = generating.generation.model_copy(update={"samples": 3})  # of which plain self-play takes the first
    generated = run_stage(generating.model_copy(update={"generation": several}), folder / "generate", generate)
    samples = judged(generated.artifact("responses"), folder / "judged")

    def make(
        untied: bool = False,
        dtype: str = "float32",
        packing: Packing = "packed",
        objective: ObjectivePart | None = None,
        **training: object,
    ) -> TrainSpec:
        spec = plan.train_spec(_experiment(model, pairs, **training), prepared, state, generated)
        policy = Policy(model=Artifact.of(folder / "untied")) if untied else spec.policy
        changes = {"policy": policy, "opponent": policy, "dtype": dtype, "packing": packing}
        if objective:
            resolved = objective.resolved(judged=True)
            form = {"wrong_samples": "first-token", "baseline": 0.5} if resolved.verified else {}
            changes |= {"objective": resolved, **form, **samples}
        return spec.model_copy(update={**changes, "execution": Execution()})

    return make


def judged(responses: Artifact, folder: Path) -> dict[str, list[Artifact]]:
    """`responses` as if all had ended by themselves, and verdicts on them, of all three kinds by their tokens' sum.

    Wrong ones begin with the first tokens of their prompt's first sample.
    """
    rows, kinds = pq.read_table(responses.path).to_pylist(), ("right", "wrong", "undecided", "right", "wrong")
    verdicts = [kinds[sum(row["token_ids"]) % 5] for row in rows]
    first = {row["prompt_id"]: row["token_ids"][:SHARED] for row in rows if row["sample"] == 0}
    for row, verdict in zip(rows, verdicts, strict=True):
        row["finish_reason"] = "stop"
        if verdict == "wrong":
            row["token_ids"] = first[row["prompt_id"]] + row["token_ids"][SHARED:]
    found = {
        "synthetic": rows,
        "verdicts": [
            {"prompt_id": row["prompt_id"], "sample": row["sample"], "verdict": verdict}
            for row, verdict in zip(rows, verdicts, strict=True)
        ],
    }
    for name, content in found.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(content), folder / name / "shard-00000.parquet")
    return {name: [Artifact.of(folder / name)] for name in found}


def _experiment(model: Path, pairs: Path, **training: object) -> Experiment:
    settings = {"batch_size": 8, "epochs": 2, "tokens_per_batch": 64, "checkpoint_every": 2}
    return parse_experiment(
        {
            "name": "test",
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"path": str(pairs), "heldout": 4},
            "generation": {"backend": "transformers", "max_new_tokens": 8},
            "objective": {"beta": 0.5, "normalizer": training.pop("normalizer", "batch")},
            "training": {**settings, **training},
        }
    )
