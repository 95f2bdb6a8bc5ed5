"""What training with each objective did, over its seeds: figures of a comparison, from manifests in the store.

Every number is a mean over seeds; its 95 % interval counts seeds and held-out prompts as samples (`intervals.crossed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from iris_core.common.intervals import Interval, crossed, crossed_proportion
from iris_core.common.strict import Strict
from iris_core.objectives.gap import variational_gap
from iris_core.pipeline.comparable import verifier_of
from iris_core.pipeline.metrics import EvaluateMetrics, TrainMetrics
from iris_core.pipeline.specs import Member
from iris_core.reporting.paired import Difference, check_prompts, difference, heldout_columns, heldout_of
from iris_core.store import Manifest, named_manifest


class Trajectory(Strict):
    """What training with one objective did, over its seeds.

    Attributes:
        logprob: held-out log-prob per token of annotated answers, before and after each iteration, in nats.
        exact_match: share of held-out prompts answered exactly, or rightly where a verifier judges; the same.
        verifier: its kind; None where answers are compared for exact match.
        average: mean benchmark score of the last model, over seeds; None if a seed has none.
        label: "miniature" if the embedded benchmarks gave it.
        gap: D̂ of the last iteration, an estimate.
        synthetic: log-prob per token of the opponent's held-out answers under the last model.
        steps: of all its trainings, a mean over seeds.
        minutes: wall time of its trainings and evaluations, over all seeds; what objectives share counts for each.
        differences: how much more its last model gives than each other objective's, by prompt.
    """

    objective: str
    beta: float
    seeds: list[int]
    logprob: list[Interval]
    exact_match: list[Interval]
    verifier: str | None
    average: float | None
    label: str | None
    gap: float
    synthetic: Interval
    steps: float
    minutes: float
    differences: dict[str, Difference]


def trajectories(members: Sequence[Member]) -> list[Trajectory]:
    """One trajectory for each objective, the highest held-out log-prob first.

    Raises:
        DataError: the members were not all measured on the same held-out prompts.
    """
    check_prompts(members)
    by_objective: dict[str, list[Member]] = {}
    for member in members:
        by_objective.setdefault(member.objective, []).append(member)
    heldout = {name: heldout_of(*_last(group)) for name, group in by_objective.items()}
    found = [
        _trajectory(group, {other: difference(heldout[name], of) for other, of in heldout.items() if other != name})
        for name, group in by_objective.items()
    ]
    return sorted(found, key=lambda trajectory: -trajectory.logprob[-1].value)


def read_trajectories(file: Path) -> list[Trajectory]:
    """Those that the stage `compare` wrote as JSON."""
    return TypeAdapter(list[Trajectory]).validate_json(file.read_bytes())


def _last(members: Sequence[Member]) -> tuple[list[Manifest], list[Manifest]]:
    """The last training and the last evaluation of each seed."""
    trained = [named_manifest(member.train[-1]) for member in members]
    return trained, [named_manifest(member.evaluate[-1]) for member in members if member.evaluate]


def _trajectory(members: Sequence[Member], differences: dict[str, Difference]) -> Trajectory:
    beta = members[0].beta
    trained = [[named_manifest(artifact) for artifact in member.train] for member in members]
    scored = [
        [named_manifest(artifact) for artifact in [*filter(None, [member.initial]), *member.evaluate]]
        for member in members
    ]
    heldout = [heldout_columns(runs) for runs in zip(*trained, strict=True)]  # by iteration
    first, last = heldout[0], heldout[-1]
    before = crossed(first["annotated_opponent"], first["annotated_tokens"])
    after = [crossed(it["annotated_policy"], it["annotated_tokens"]) for it in heldout]
    rewards = [beta * (last[f"{side}_policy"] - last[f"{side}_opponent"]) for side in ("annotated_cut", "synthetic")]
    answered = [runs for runs in zip(*scored, strict=True) if "heldout" in runs[0].outputs]
    last_scores = [EvaluateMetrics.of(run[-1]) for run in scored if run]
    averages = [scores.average.value for scores in last_scores if scores.average]
    return Trajectory(
        objective=members[0].objective,
        beta=beta,
        seeds=[member.seed for member in members],
        logprob=[before, *after],
        exact_match=[crossed_proportion(heldout_columns(runs)["correct"]) for runs in answered],
        verifier=verifier_of(answered[-1][0]) if answered else None,
        average=sum(averages) / len(averages) if averages and len(averages) == len(last_scores) else None,
        label=next((scores.label for scores in last_scores), None),
        gap=float(variational_gap(*rewards).mean()),
        synthetic=crossed(last["synthetic_policy"], last["synthetic_tokens"]),
        steps=sum(TrainMetrics.of(manifest).train.steps for run in trained for manifest in run) / len(members),
        minutes=sum(manifest.seconds for run in (*trained, *scored) for manifest in run) / 60,
        differences=differences,
    )
