"""Objectives compared, each with several seeds, on one model and one data set: a table, the frontier, a page.

Every number is a mean over seeds; its 95 % interval counts seeds and held-out prompts as samples (`intervals.crossed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from iris_core.common import markup
from iris_core.common.intervals import Interval, crossed, crossed_proportion
from iris_core.common.strict import Strict
from iris_core.config.verification import accuracy_name
from iris_core.objectives.gap import variational_gap
from iris_core.pipeline.comparable import verifier_of
from iris_core.pipeline.metrics import EvaluateMetrics
from iris_core.pipeline.specs import Member
from iris_core.reporting import figures
from iris_core.reporting.page import Plot, pages
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


def headers(found: Sequence[Trajectory]) -> list[str]:
    """What the cells of a row are."""
    accuracy = accuracy_name(found[0].verifier)
    return [
        "objective",
        "β",
        "log-prob / token [95 %]",
        f"{accuracy} [95 %]",
        "gap D̂",
        "log-prob of own answers",
        "average, %",
    ]


def cells(trajectory: Trajectory) -> list[str]:
    """The row of an objective's last model, a cell for each of `headers`."""
    average = trajectory.average
    label = f" ({trajectory.label})" if trajectory.label else ""
    return [
        trajectory.objective,
        f"{trajectory.beta:g}",
        f"{trajectory.logprob[-1]:.3f}",
        f"{trajectory.exact_match[-1]:.2f}" if trajectory.exact_match else "",
        f"{trajectory.gap:.2f}",
        f"{trajectory.synthetic.value:.2f}",
        "" if average is None else f"{100 * average:.1f}{label}",
    ]


def markdown(found: Sequence[Trajectory]) -> str:
    """The comparison as a Markdown table."""
    return markup.table(headers(found), [cells(trajectory) for trajectory in found])


def render(experiment: str, found: Sequence[Trajectory]) -> str:
    """The page, as HTML."""
    return (
        pages()
        .get_template("comparison.html.j2")
        .render(
            experiment=experiment,
            seeds=found[0].seeds,
            plots=plots(found),
            headers=headers(found),
            rows=[cells(trajectory) for trajectory in found],
            **differences(found),
        )
    )


def plots(found: Sequence[Trajectory]) -> list[Plot]:
    """The log-prob by model, and the frontier: accuracy against log-prob."""
    names = ["initial", *map(str, range(len(found[0].logprob) - 1))]
    series = {trajectory.objective: trajectory.logprob for trajectory in found}
    label = "held-out log-prob, nats per token"
    drawn = [
        Plot(
            "Log-probability",
            Markup(figures.compared("logprob", names, series, label)),
            "Held-out log-probability per token of the annotated answers: the initial model, then after each "
            "iteration.",
            "; ".join(f"{row.objective} ends at {row.logprob[-1]:.3f}" for row in found),
        )
    ]
    answered = [row for row in found if row.exact_match]
    if not answered:
        return drawn
    accuracy = accuracy_name(answered[0].verifier)
    models = {row.objective: (row.logprob[-len(row.exact_match) :], row.exact_match) for row in answered}
    caption = (
        f"Held-out {accuracy} against held-out log-probability per token, a line for each objective from the first "
        "model whose answers were checked, with a dot for each model, to the last one, which has its intervals. Above "
        "and to the right is better."
    )
    ends = ((row.objective, row.exact_match[-1], row.logprob[-1].value) for row in answered)
    words = (f"{name} ends at {right:.2f}, log-prob {logprob:.3f}" for name, right, logprob in ends)
    picture = Markup(figures.frontier(models, label, f"held-out {accuracy}"))
    return [*drawn, Plot(f"{accuracy} against log-probability".capitalize(), picture, caption, "; ".join(words))]


def differences(found: Sequence[Trajectory]) -> dict[str, Any]:
    """For the page: what is compared by prompt, and of each objective against each: value, interval, if not 0."""
    answered = all(one.accuracy for row in found for one in row.differences.values())
    names = [row.objective for row in found]

    def cell(row: Trajectory, other: str) -> tuple[str, str, bool] | None:
        if other == row.objective:
            return None
        accuracy, logprob = row.differences[other].accuracy, row.differences[other].logprob
        shown, digits = (accuracy.scaled(100), ".1f") if answered and accuracy else (logprob, ".3f")
        value, _, interval = f"{shown:+{digits}}".partition(" ")
        return value, interval, not shown.low <= 0 <= shown.high

    return {
        "measure": f"{accuracy_name(found[0].verifier)}, percentage points" if answered else "log-prob, nats per token",
        "columns": names,
        "paired": [(row.objective, [cell(row, other) for other in names]) for row in found] if len(found) > 1 else [],
    }


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
        minutes=sum(manifest.seconds for run in (*trained, *scored) for manifest in run) / 60,
        differences=differences,
    )
