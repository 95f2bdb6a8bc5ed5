"""What a training works on; in verified self-play a prompt with all its sampled responses that have a weight."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq
import torch
from torch import Tensor

from iris_core.common.errors import DataError
from iris_core.config import SyntheticPart
from iris_core.data.packing import Group
from iris_core.data.pairs import Pair, load_pairs
from iris_core.objectives.losses import SampleWeights
from iris_core.objectives.verified import sample_weights
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Artifact
from iris_core.training.groups import Response, intact, kinds_of, load_groups, load_responses

VERDICTS = {"right": 1.0, "wrong": -1.0, "undecided": 0.0}


class Trained(NamedTuple):
    """What a training works on.

    Attributes:
        groups: prompt and responses, of each pair.
        weights: of the responses, by a verifier's verdicts; None in plain self-play.
        counts: pairs, or samples, by kind of synthetic response; see `load_groups`.
    """

    groups: list[Group]
    weights: SampleWeights | None
    counts: Counter[str]

    @property
    def scored(self) -> list[Group]:
        """The responses that the opponent's log-probs are needed of: not those of the initial model."""
        return [group.first(2) for group in self.groups] if self.weights is None else self.groups


class Sample(NamedTuple):
    """A sampled response, as it is compared, with its verdict: 1 if right, −1 if wrong, 0 if undecided."""

    response: Response
    verdict: float


class Part(NamedTuple):
    """What is trained on of samples: a right one, or a wrong one up to the token at which it goes wrong.

    Attributes:
        token_ids: of a right sample, or up to that token.
        scored_from: the first token that the weight is of: 0, or the last one.
        up: U; of equal samples, the sum.
        down: D, likewise.
    """

    token_ids: list[int]
    scored_from: int
    up: float
    down: float


class Found(NamedTuple):
    """A pair with what is trained on of its samples, and p̂, the share of right ones."""

    pair: Pair
    parts: list[Part]
    share: float


NOTHING = Part([], 0, 0.0, 0.0)


def load_trained(spec: TrainSpec) -> Trained:
    """The groups to train on: of pairs, or [prompt | annotated | samples] where the objective learns from verdicts.

    In the latter, an annotated response that is missing is empty, and so are samples that a group has less than
    others. A wrong sample ends at its first token that neither a right one nor the annotated response has after the
    same beginning; its sum of log-probs is of that token. A prompt without anything to learn is left out. Samples that
    `spec.handling` drops or masks count as undecided; so does a right one that is cut.

    Raises:
        DataError: a prompt has no samples, a sample has no verdict, or files do not match the spec's digests.
    """
    if not spec.objective.learns_from_verdicts:
        groups, counts = load_groups(spec, "train")
        return Trained(groups, None, counts)
    for name in ("wrong_samples", "baseline"):
        if spec.objective.verified and getattr(spec, name) is None:
            raise DataError(
                f"{name}: null: the spec is of a version of IRIS that weighed responses otherwise: run the loop again, "
                "which writes a new one"
            )
    found, counts = _found(spec)
    return Trained(*_padded(found, spec.max_new_tokens), counts)


def compared_groups(spec: TrainSpec, count: int) -> list[Group]:
    """At most `count` annotated pairs that are trained on, each with one response of the opponent, as held-out ones."""
    whole = spec.model_copy(update={"synthetic": spec.synthetic[:1], "handling": SyntheticPart()})
    groups, _ = load_groups(whole, "train")
    return [group.first(2) for group in groups[:count]]


def _found(spec: TrainSpec) -> tuple[list[Found], Counter[str]]:
    """All pairs that are annotated or have samples with a weight, and counts of samples by kind.

    SPIN raises an annotated response only against wrong samples: of its pairs those without a weight are left out.
    """
    pairs, counts = load_pairs(spec.pairs, "train"), Counter[str]()
    right = {pair.prompt_id: [pair.response_ids] for pair in pairs}
    found = []
    sources = [_judged(*source, spec.max_new_tokens) for source in zip(spec.synthetic, spec.verdicts, strict=True)]
    for samples, responses in zip(sources, spec.synthetic, strict=True):
        for prompt_id, answers in right.items():
            if prompt_id not in samples:
                raise DataError(f"{responses.path}: no synthetic response to prompt {prompt_id}: run generate again")
            answers += [sample.response.token_ids for sample in samples[prompt_id] if sample.verdict > 0]
    for samples in sources:
        verdict = torch.tensor([_verdicts(spec, pair, samples[pair.prompt_id], counts) for pair in pairs])
        weights = _weigh(spec, verdict, pairs)
        for pair, up, down, share in zip(pairs, *(each.tolist() for each in weights[1:]), strict=True):
            parts = _parts(samples[pair.prompt_id], up, down, right[pair.prompt_id])
            if pair.annotated or parts:
                found.append(Found(pair, parts, share))
    weighing = [each for each in found if each.parts]
    return (weighing if weighing and spec.objective.name == "spin" else found), counts


def _judged(responses: Artifact, verdicts: Artifact, cut: int) -> dict[str, list[Sample]]:
    """The samples of each prompt, in order, by prompt."""
    columns = ["prompt_id", "sample", "verdict"]
    rows = pq.read_table(intact(verdicts).path, columns=columns).to_pylist()
    by_sample = {(row["prompt_id"], row["sample"]): VERDICTS[row["verdict"]] for row in rows}

    def judged(prompt_id: str, number: int, response: Response) -> Sample:
        if (prompt_id, number) not in by_sample:
            raise DataError(f"{verdicts.path}: no verdict on response {number} to {prompt_id}: run generate again")
        return Sample(response, by_sample[prompt_id, number])

    return {
        prompt_id: [judged(prompt_id, number, response) for number, response in enumerate(sampled)]
        for prompt_id, sampled in load_responses(responses, cut).items()
    }


def _verdicts(spec: TrainSpec, pair: Pair, samples: Sequence[Sample], counts: Counter[str]) -> list[float]:
    """The verdicts that count, shape [n]: 0 for samples that training leaves out."""
    counting = []
    for response, verdict in samples:
        kinds = kinds_of(pair, response, spec.max_new_tokens)
        counts.update(kinds)
        masked = any(getattr(spec.handling, kind) != "keep" for kind in kinds)
        counts["masked"] += masked
        counting.append(0.0 if masked or (response.truncated and verdict > 0) else verdict)
    return counting


def _weigh(spec: TrainSpec, verdicts: Tensor, pairs: Sequence[Pair]) -> SampleWeights:
    """Weights by verdicts of shape [pairs, n]."""
    annotated = torch.tensor([float(pair.annotated) for pair in pairs])
    right, wrong = (verdicts > 0).float(), (verdicts < 0).float()
    baseline = spec.baseline if spec.objective.verified else 0.0
    assert baseline is not None
    return sample_weights(right, wrong, annotated, spec.objective.verified_weight, baseline)


def _parts(
    samples: Sequence[Sample], up: Sequence[float], down: Sequence[float], right: Sequence[list[int]]
) -> list[Part]:
    """What is trained on of samples, with the tokens of all right responses to the prompt."""
    ups, downs = defaultdict[tuple[int, ...], float](float), defaultdict[tuple[int, ...], float](float)
    for sample, u, d in zip(samples, up, down, strict=True):
        ids = tuple(sample.response.token_ids)
        if u:
            ups[ids] += u
        elif d and (shared := shared_with(ids, right)) < len(ids):
            downs[ids[: shared + 1]] += d
    return [
        *(Part(list(ids), 0, u, 0.0) for ids, u in ups.items()),
        *(Part(list(ids), len(ids) - 1, 0.0, d) for ids, d in downs.items()),
    ]


def shared_with(ids: Sequence[int], others: Sequence[Sequence[int]]) -> int:
    """How many of the first tokens of `ids` are also those of one of `others`, the most of them."""

    def shared(other: Sequence[int]) -> int:
        both = enumerate(zip(ids, other, strict=False))
        return next((place for place, (one, its) in both if one != its), min(len(ids), len(other)))

    return max(map(shared, others))


def _padded(found: Sequence[Found], cut: int) -> tuple[list[Group], SampleWeights]:
    """All groups with as many responses as the one that has the most."""
    width = max(len(each.parts) for each in found)
    padded = [[*each.parts, *[NOTHING] * (width - len(each.parts))] for each in found]
    groups = [
        Group(
            each.pair.prompt_ids,
            (each.pair.response_ids, *(part.token_ids for part in parts)),
            cut,
            (0, *(part.scored_from for part in parts)),
        )
        for each, parts in zip(found, padded, strict=True)
    ]
    return groups, SampleWeights(
        annotated=torch.tensor([float(each.pair.annotated) for each in found]),
        up=torch.tensor([[part.up for part in parts] for parts in padded]),
        down=torch.tensor([[part.down for part in parts] for parts in padded]),
        share=torch.tensor([each.share for each in found]),
    )
