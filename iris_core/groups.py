"""Groups of token ids to train and measure on, from the pairs and the responses that earlier stages have stored."""

from __future__ import annotations

import pyarrow.parquet as pq

from iris_core.data import load_pairs
from iris_core.errors import DataError
from iris_core.packing import Group
from iris_core.specs import TrainSpec
from iris_core.store import Artifact


def load_groups(spec: TrainSpec, split: str) -> list[Group]:
    """Prompt and responses of every pair of `split`: annotated, synthetic and, if the spec has them, the initial model's.

    Held-out pairs have the newest synthetic response only.

    Raises:
        DataError: a prompt has no synthetic response.
    """
    training = split == "train"
    initial = [spec.initial_synthetic] if training and spec.initial_synthetic else []
    groups = []
    for source in spec.synthetic if training else spec.synthetic[:1]:
        sampled = [_responses(artifact) for artifact in (source, *initial)]
        for pair in load_pairs(spec.pairs, split):
            if any(pair.prompt_id not in responses for responses in sampled):
                raise DataError(
                    f"{source.path}: no synthetic response to prompt {pair.prompt_id}: run generate again"
                )
            responses = [
                pair.response_ids,
                *(responses[pair.prompt_id] for responses in sampled),
            ]
            cut = tuple(ids[: spec.max_response_tokens] for ids in responses)
            groups.append(Group(pair.prompt_ids, cut))
    return groups


def _responses(artifact: Artifact) -> dict[str, list[int]]:
    """Token ids of the stage `generate`, by prompt."""
    rows = pq.read_table(artifact.path, columns=["prompt_id", "token_ids"]).to_pylist()
    return {row["prompt_id"]: row["token_ids"] for row in rows}
