"""Groups of token ids for training and measurement, from the pairs and responses that earlier stages stored."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pyarrow.parquet as pq

from iris_core.common.errors import DataError
from iris_core.data.packing import Group
from iris_core.data.pairs import Pair, load_pairs
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Artifact


class Response(NamedTuple):
    """A synthetic response as it is compared.

    Attributes:
        token_ids: at most `max_new_tokens`.
        text: of the whole response.
        truncated: whether generation reached its limit, or tokens were cut.
    """

    token_ids: list[int]
    text: str
    truncated: bool


def load_groups(spec: TrainSpec, split: str) -> tuple[list[Group], Counter[str]]:
    """Prompt and responses of each pair of `split`: annotated, synthetic, and the initial model's if the spec has them.

    Synthetic responses are cut at `max_new_tokens`. The annotated response has one sum of log-probs up to there, and
    another of the rest. Held-out pairs have only the newest synthetic response, and all of them are kept. Of several
    responses to a prompt the first is taken. Prompts without annotation have no group.

    Args:
        spec: of the stage.
        split: "train" or "heldout".

    Returns:
        The groups, and counts of pairs by kind of synthetic response ("truncated", "empty", "equal"), "dropped" and
        "masked".

    Raises:
        DataError: a prompt has no synthetic response, all pairs are dropped, or responses do not match the spec's
            digest.
    """
    training = split == "train"
    initial = [spec.initial_synthetic] if training and spec.initial_synthetic else []
    pairs = [pair for pair in load_pairs(spec.pairs, split) if pair.annotated]
    groups, counts = [], Counter[str]()
    for source in spec.synthetic if training else spec.synthetic[:1]:
        sampled = [load_responses(artifact, spec.max_new_tokens) for artifact in (source, *initial)]
        for pair in pairs:
            if any(pair.prompt_id not in responses for responses in sampled):
                raise DataError(f"{source.path}: no synthetic response to prompt {pair.prompt_id}: run generate again")
            responses = [by_prompt[pair.prompt_id][0] for by_prompt in sampled]
            kinds = kinds_of(pair, responses[0], spec.max_new_tokens) if training else []
            handling = {getattr(spec.handling, kind) for kind in kinds}
            counts.update(kinds)
            if "drop" in handling:
                counts["dropped"] += 1
                continue
            counts["masked"] += "mask" in handling
            others = [[] if "mask" in handling else response.token_ids for response in responses]
            groups.append(Group(pair.prompt_ids, (pair.response_ids, *others), spec.max_new_tokens))
    if not groups:
        raise DataError(
            f"data.synthetic: it drops all {counts['dropped']} pairs: set it to keep or mask, or raise "
            "generation.max_new_tokens"
        )
    return groups, counts


def kinds_of(pair: Pair, response: Response, cut: int) -> list[str]:
    """The settings in `data.synthetic` that apply to the opponent's response to `pair`."""
    same_ids = response.token_ids == pair.response_ids[:cut]
    same_text = response.text.strip() == pair.response.strip()
    found = {
        "truncated": response.truncated,
        "empty": not response.text.strip(),
        "equal": pair.annotated and (same_ids or same_text),
    }
    return [kind for kind, applies in found.items() if applies]


def load_responses(artifact: Artifact, cut: int) -> dict[str, list[Response]]:
    """The responses that `generate` sampled, in order, by prompt.

    An earlier iteration may have had a higher limit than `cut`.
    """
    columns = ["prompt_id", "token_ids", "response", "finish_reason"]
    found: dict[str, list[Response]] = {}
    for row in pq.read_table(intact(artifact).path, columns=columns).to_pylist():
        truncated = row["finish_reason"] == "length" or len(row["token_ids"]) > cut
        found.setdefault(row["prompt_id"], []).append(Response(row["token_ids"][:cut], row["response"], truncated))
    return found


def intact(artifact: Artifact) -> Artifact:
    """What `generate` wrote, unchanged.

    Raises:
        DataError: it is missing, or has changed.
    """
    if not artifact.holds():
        raise DataError(
            f"{artifact.path} is missing or has changed since `generate` wrote it: run the loop again, which generates "
            "it again"
        )
    return artifact
