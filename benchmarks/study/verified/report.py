"""README.md of panel c: tables of the fresh seeds with 95 % intervals, and the findings with their numbers."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from benchmarks.study.results import Interval
from benchmarks.study.tables import Numbers, markdown, signed
from benchmarks.study.verified.methods import Method, groups, rft
from benchmarks.study.verified.regimes import Regime
from benchmarks.study.verified.results import Result
from benchmarks.study.verified.selection import (
    BUDGETS,
    LADDER,
    Budget,
    Choice,
    Model,
    best_likelihood,
    choose,
    model,
    score,
    validity_at,
    validity_at_likelihood,
    wins,
)

FINDINGS = Path(__file__).with_name("findings.md")
SFT = "SFT"  # the supervised budget that the criterion prefers
TITLES: dict[Budget, str] = {
    None: "The most likely model",
    1.0: "The most valid model within 1 nat of the best supervised likelihood",
    4.0: "The most valid model within 4 nats of the best supervised likelihood",
}


@dataclass(frozen=True)
class Panel:
    """All results of a regime.

    Attributes:
        regime: sizes; its seeds chose the cells.
        explored: every method on its grid.
        confirmed: every method on fresh seeds, in its chosen cells.
    """

    regime: Regime
    explored: list[Result]
    confirmed: list[Result]

    @cached_property
    def best(self) -> float:
        """The best supervised likelihood on the seeds that choose."""
        return best_likelihood(result for result in self.explored if result.job.method.objective == "sft")

    def choice(self, name: str, budget: Budget) -> Choice:
        """The cell and iteration of a method."""
        return choose(self._explored(name, budget), budget, self.best)

    def model(self, name: str, budget: Budget) -> Model:
        """The chosen models of a method on the fresh seeds."""
        result = self._explored(name, budget)
        fresh = next(each for each in self.confirmed if each.job.method == result.job.method)
        return model(fresh, choose(result, budget, self.best))

    def difference(self, measure: str, ours: str, theirs: str, budget: Budget) -> Interval:
        """A measure of one method minus another's, paired by seed."""
        return Interval.of(self.model(ours, budget).at(measure) - self.model(theirs, budget).at(measure))

    def matched(self, ours: str, theirs: str, budget: Budget) -> Interval:
        """Validity of one method minus another's at the temperature with the same entropy, paired by seed."""
        model, reference = self.model(ours, budget), self.model(theirs, budget)
        return Interval.of(model.at("validity") - validity_at(reference, model.at("entropy")))

    def at_likelihood(self, ours: str, theirs: str, nats: float) -> Interval:
        """Validity of one method minus another's, both so many nats below the supervised likelihood, paired by seed."""
        wanted = self.model(SFT, None).at("validation") - nats
        a, b = (
            validity_at_likelihood([self.model(name, budget) for budget in LADDER], wanted) for name in (ours, theirs)
        )
        return Interval.of(a - b)

    def wins(self, ours: str, theirs: str, budget: Budget) -> Interval:
        """Win rate of one method against another."""
        return Interval.of(wins(self.model(ours, budget), self.model(theirs, budget)))

    def _explored(self, name: str, budget: Budget) -> Result:
        """A method's result on the seeds that choose; of `SFT` that of the step budget that the criterion prefers."""
        if name == SFT:
            supervised = (each for each in self.explored if each.job.method.objective == "sft")
            return max(supervised, key=lambda result: score(result, budget, self.best))
        return next(each for each in self.explored if each.job.method.name == name)


def write_report(panels: list[Panel], out: Path) -> None:
    """Writes README.md."""
    sections = [_introduction(panels), "## Findings\n\n" + findings(panels)]
    sections += [_tables(panel, budget) for panel in panels for budget in BUDGETS]
    (out / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _introduction(panels: list[Panel]) -> str:
    results = [result for panel in panels for result in (*panel.explored, *panel.confirmed)]
    runs = sum(len(result.job.cells) * result.job.regime.seeds for result in results)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "scipy"))
    explored, confirmed = (each[0].job.regime.seeds for each in (panels[0].explored, panels[0].confirmed))
    return f"""# Panel c of the study: self-play with a verifier

Written by `python -m benchmarks.study.verified` on {datetime.date.today().isoformat()} with Python
{platform.python_version()}, {versions}: {runs:,} runs, {sum(result.seconds for result in results) / 60:.0f} minutes of
computing, shared by the workers. It can be killed at any time and continues where it stopped.

As in the [study](../README.md), p_data is a fixed random network and a small student learns from its samples. Here the
teacher has a grammar. In every context only some tokens are possible, and **the verifier calls a response right if it
has no impossible token**. All divergences, validities and entropies are exact. Losses, weights, normaliser, gap and
schedule are the product's own functions; forms that only the study tries are in `losses.py`.

{
        markdown(
            ("regime", "prompts", "tokens (possible)", "length", "student", "pairs", "batch", "epochs", "iterations"),
            [_sizes(panel.regime) for panel in panels],
        )
    }

All methods start from the same student: supervised fine-tuning on the annotated pairs, each seed with the number of
epochs that its validation prefers. "SFT ×k" trains k times as many steps; "SFT" is the one of these that the criterion
prefers. A grid has learning rate × β (plain self-play) or × ρ (with a verifier). Each method chooses a cell
and an iteration, the initial model included, on {explored} seeds; **the tables show {
        confirmed
    } fresh seeds**, with other
teachers, data and students. A criterion is the validation likelihood, or the share of valid samples on validation
prompts among models that lose at most 1 or 4 nats of likelihood against the best supervised one.

Differences are paired by seed; intervals are 95 %, Student's t over seeds, in bold type where they exclude zero.
They do not account for the number of methods compared. "At equal entropy" compares with SFT at the temperature where it
has the entropy of the method: a sharper distribution alone gains nothing there. "At equal likelihood" compares
with RFT (the same samples, prompts and wrong verdicts) where both are 1 or 4 nats below the best supervised likelihood,
interpolated between models chosen within budgets up to 6 nats: the steps of the grids matter little there. The win rate
is the share of test prompts where the method's sample is more probable in the data than SFT's."""


def _sizes(regime: Regime) -> list[str]:
    prompts, split = str(regime.topics), regime.split
    if split:
        training = f"{split.annotated} annotated, {split.unannotated} not"
        prompts = f"{regime.factors}²: {training}, {split.validation} to validate, {split.test} to test"
    tokens = f"{regime.tokens} ({regime.allowed})"
    sizes = (regime.length, regime.hidden, regime.pairs, regime.batch, regime.epochs, regime.iterations)
    return [regime.name, prompts, tokens, *map(str, sizes)]


HEADER = (
    "method",
    "rate, β or ρ",
    "iteration",
    "KL(p_data‖p_θ)",
    "KL(p_θ‖p_data)",
    "entropy",
    "validity",
    "minus SFT's",
    "minus SFT's at equal entropy",
    "minus RFT's at equal likelihood",
    "wins against SFT",
)


def _tables(panel: Panel, budget: Budget) -> str:
    tables = [
        f"### {title}\n\n" + markdown(HEADER, [_row(panel, method, budget) for method in methods])
        for title, methods in groups(panel.regime).items()
    ]
    return "\n\n".join([f"## {panel.regime.name}: {TITLES[budget][0].lower()}{TITLES[budget][1:]}", *tables])


def _row(panel: Panel, method: Method, budget: Budget) -> list[str]:
    name, model, choice = method.name, panel.model(method.name, budget), panel.choice(method.name, budget)
    rft = counterpart(method)
    means = [f"{model.at(measure).mean():.3f}" for measure in ("forward", "reverse", "entropy", "validity")]
    return [
        name,
        ", ".join(f"{value:g}" for value in choice.cell),
        str(choice.iteration),
        *means,
        signed(panel.difference("validity", name, SFT, budget)),
        signed(panel.matched(name, SFT, budget)),
        signed(panel.at_likelihood(name, rft, budget)) if budget and rft not in (None, name) else "–",
        f"{panel.wins(name, SFT, budget).value:.3f}",
    ]


def counterpart(method: Method) -> str | None:
    """The name of RFT with the same samples, prompts and wrong verdicts."""
    if not method.verified:
        return None
    return rft(method.samples, prompts=method.prompts, noise=method.noise).name


def findings(panels: list[Panel]) -> str:
    """The paragraphs of findings.md with their numbers.

    `{validity[h8 / 4 / A / B]}` is A's validity minus B's on the fresh seeds of h8, both chosen within 4 nats, or with
    "–" by likelihood. `{matched[…]}` is the same at equal entropy, `{likelihood[…]}` at equal likelihood,
    `{forward[…]}` of KL(p_data‖p_θ), and `{wins[…]}` the win rate.
    """
    by_name = {panel.regime.name: panel for panel in panels}

    def number(measure: str, key: str) -> str:
        regime, nats, ours, theirs = key.split(" / ")
        panel, budget = by_name[regime], None if nats == "–" else float(nats)
        if measure == "matched":
            return signed(panel.matched(ours, theirs, budget))
        if measure == "likelihood":
            return signed(panel.at_likelihood(ours, theirs, float(nats)))
        if measure == "wins":
            found = panel.wins(ours, theirs, budget)
            return f"{found.value:.3f} ± {found.high - found.value:.3f}"
        return signed(panel.difference(measure, ours, theirs, budget))

    template = FINDINGS.read_text(encoding="utf-8").strip()
    names = ("validity", "forward", "reverse", "greedy", "matched", "likelihood", "wins")
    return template.format(**{name: Numbers(partial(number, name)) for name in names})
