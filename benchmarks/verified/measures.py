"""What is measured of a model on the test pairs: verdicts on its answers, and the likelihood of annotated ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow.parquet as pq

from benchmarks.interleaved import Rounds, alone
from benchmarks.verified.loop import answers
from iris_core.common.files import replacing
from iris_core.common.intervals import Floats
from iris_core.config import Experiment
from iris_core.data.pairs import load_pairs, write_pairs
from iris_core.pipeline.plan import Prepared
from iris_core.store import Artifact, Policy

TOKENS_PER_ROW = 704


class Measured(NamedTuple):
    """A model on the test pairs, in their order.

    Attributes:
        greedy: 1 where the greedy answer is right, shape [pairs].
        sampled: the same of a sampled answer.
        logprob: log-prob of the annotated answer, in nats.
        tokens: of the annotated answer.
        steps: of the optimizer since the start.
    """

    greedy: Floats
    sampled: Floats
    logprob: Floats
    tokens: Floats
    steps: int

    @classmethod
    def read(cls, answered: Path, judged: Path, scored: tuple[Floats, Floats], steps: int) -> Self:
        """From the files of the stages `evaluate` and `generate`."""
        greedy = pq.read_table(answered, columns=["correct"])["correct"].to_pylist()
        sampled = [verdict == "right" for verdict in pq.read_table(judged, columns=["verdict"])["verdict"].to_pylist()]
        return cls(np.array(greedy, np.float64), np.array(sampled, np.float64), *scored, steps)


def heldout_only(prepared: Prepared, path: Path) -> Prepared:
    """`prepared` without the pairs that are trained on."""
    write_pairs(load_pairs(prepared.pairs, "heldout"), path)
    return prepared.model_copy(update={"pairs": Artifact.of(path)})


def best(experiment: Experiment, prepared: Prepared, found: list[Policy]) -> Policy:
    """The policy that answers most validation prompts; among equals, the one that makes annotated answers likeliest."""
    only = heldout_only(prepared, Path(experiment.store) / f"{experiment.name}-validation.parquet")

    def quality(policy: Policy) -> tuple[float, float]:
        right = pq.read_table(answers(experiment, prepared, policy), columns=["correct"])["correct"].to_pylist()
        return sum(right), float(logprobs(only, policy)[0].sum())

    qualities = [quality(policy) for policy in found]
    chosen = qualities.index(max(qualities))
    counts = [int(count) for count, _ in qualities]
    print(f"{experiment.name}: right after each iteration: {counts}; the start: {chosen + 1}", flush=True)
    return found[chosen]


def merge(policy: Policy, name: str, folder: Path) -> Path:
    """The folder `name`-… in `folder` with the model of `policy`, its adapter merged into the weights."""
    assert policy.adapter is not None
    merged = folder / f"{name}-{policy.adapter.digest[:12]}"
    if not merged.exists():
        with replacing(merged) as unfinished:
            alone(_merge, policy=policy, folder=unfinished)
    return merged


def _merge(rounds: Rounds, policy: Policy, folder: Path) -> None:
    from iris_core.modeling import loading

    loading.load_tokenizer(policy.model.path, False).save_pretrained(folder)
    loading.load_policy(policy, "float32").merge_and_unload().save_pretrained(folder)


def logprobs(prepared: Prepared, policy: Policy) -> tuple[Floats, Floats]:
    """Log-prob and tokens of each annotated answer, shape [pairs] each."""
    values, counts = alone(_logprobs, prepared=prepared, policy=policy)
    return np.array(values), np.array(counts)


def _logprobs(rounds: Rounds, prepared: Prepared, policy: Policy) -> tuple[list[float], list[float]]:
    from iris_core.data.packing import Group
    from iris_core.modeling import loading
    from iris_core.modeling.scoring import score

    model = loading.load_policy(policy, "float32").eval()
    groups = [Group(pair.prompt_ids, (pair.response_ids,)) for pair in load_pairs(prepared.pairs)]
    scored = score(model, groups, TOKENS_PER_ROW, packing=prepared.packing)
    return scored.sum(dim=1).double().tolist(), [float(len(group.responses[0])) for group in groups]
