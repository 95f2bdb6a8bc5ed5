"""Shards of verdicts, one beside each shard of responses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iris_core.common.parquet import write_parquet
from iris_core.data.judged import case_of
from iris_core.data.pairs import Pair
from iris_core.pipeline.specs import GenerateSpec
from iris_core.verification.verdicts import NO_REFERENCE
from iris_core.verification.verifier import open_verifier

VERDICTS = "verdicts"
MIN_MIXED = 0.05  # share of prompts with right and wrong responses below which there is a warning
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
    ]
)


def verdicts_file(responses: Path) -> Path:
    """The file with the verdicts on the shard `responses`; units of a stage have names of their own."""
    return responses.parents[1] / VERDICTS / responses.name.replace("shard", VERDICTS)


def write_verdicts(path: Path, spec: GenerateSpec, responses: Path, shard: list[Pair]) -> None:
    """Judges the responses in a shard and writes a row for each, in its order.

    Args:
        path: the Parquet file.
        spec: the verifier and the answer pattern.
        responses: the shard's file.
        shard: its pairs.
    """
    by_id = {pair.prompt_id: pair for pair in shard}
    rows = pq.read_table(responses, columns=["prompt_id", "sample", "response", "finish_reason"]).to_pylist()
    settings, pattern = spec.verification, spec.answer_pattern
    cases = [
        case_of(by_id[row["prompt_id"]], row["response"], settings, pattern, truncated=row["finish_reason"] == "length")
        for row in rows
    ]
    with open_verifier(settings, pattern) as verifier:
        verdicts = verifier.verify(cases)
    judged = [
        {"prompt_id": row["prompt_id"], "sample": row["sample"], **vars(verdict)}
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    write_parquet(path, pa.Table.from_pylist(judged, SCHEMA))


def count_verdicts(rows: list[dict[str, Any]], verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of verdicts, as `GenerateMetrics` has them. Held-out prompts count that `evaluate` has a verdict on, too.

    Args:
        rows: responses of both splits.
        verdicts: on each of them, in their order.
    """
    splits: dict[str, list[tuple[str, str, str]]] = {"train": [], "heldout": []}
    for row, found in zip(rows, verdicts, strict=True):
        splits[row["split"]].append((row["prompt_id"], found["verdict"], found["reason"]))
    trained = Counter(verdict for _, verdict, _ in splits["train"])
    right, wrong = ({prompt for prompt, found, _ in splits["train"] if found == name} for name in ("right", "wrong"))
    heldout = [verdict == "right" for _, verdict, reason in splits["heldout"] if reason != NO_REFERENCE]
    return {
        **{name: trained[name] for name in ("right", "wrong", "undecided")},
        "judged_prompts": len({prompt for prompt, *_ in splits["train"]}),
        "mixed": len(right & wrong),
        "heldout_right": sum(heldout) / len(heldout) if heldout else None,
    }


def mixed_warnings(counts: dict[str, Any], samples: int) -> list[str]:
    """A warning if the responses to nearly every prompt are all right or all wrong: they show no difference.

    Args:
        counts: from `count_verdicts`.
        samples: responses to each prompt. With one, both verdicts must be there among the prompts.
    """
    prompts = counts["judged_prompts"]
    shown = counts["mixed"] if samples > 1 else min(counts["right"], counts["wrong"])
    if shown >= MIN_MIXED * prompts:
        return []
    mostly, other = ("right", "harder") if counts["right"] >= counts["wrong"] else ("wrong", "easier")
    what = (
        f"both right and wrong responses to {counts['mixed']} of {prompts} prompts"
        if samples > 1
        else (f"{counts['right']} right and {counts['wrong']} wrong responses to {prompts} prompts")
    )
    remedy = "" if mostly == "right" and samples > 1 else ", or raise generation.samples"
    return [
        f"verification: {what}, nearly all others are {mostly}, so that verdicts teach little: take {other} prompts"
        f"{remedy}"
    ]
