"""Objectives compared, each with several seeds, on one model and one data set: a table, the frontier, a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from iris_core.common import markup
from iris_core.config.verification import accuracy_name
from iris_core.reporting import figures
from iris_core.reporting.page import Plot, pages
from iris_core.reporting.trajectories import Trajectory


def headers(found: Sequence[Trajectory]) -> list[str]:
    """What the cells of a row are."""
    accuracy = accuracy_name(found[0].verifier)
    return [
        "objective",
        "β",
        "steps",
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
        f"{trajectory.steps:.0f}",
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
    """Log-prob and accuracy by model, and the frontier: accuracy against log-prob."""
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
    return [
        *drawn,
        _accuracy_by_model(answered, names, accuracy),
        Plot(f"{accuracy} against log-probability".capitalize(), picture, caption, "; ".join(words)),
    ]


def _accuracy_by_model(answered: Sequence[Trajectory], names: Sequence[str], accuracy: str) -> Plot:
    checked = names[-len(answered[0].exact_match) :]  # the initial model may not be evaluated
    series = {row.objective: row.exact_match for row in answered}
    caption = f"Held-out {accuracy}: the share of right greedy answers, by model."
    words = "; ".join(f"{row.objective} ends at {row.exact_match[-1].value:.2f}" for row in answered)
    picture = Markup(figures.compared("accuracy", checked, series, f"held-out {accuracy}"))
    return Plot(accuracy.capitalize(), picture, caption, words)


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
