"""README.md of the study: tables with 95 % intervals over seeds, plots, and the findings with their numbers."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study import plots
from benchmarks.study.results import Floats, Interval, Result
from benchmarks.study.tables import Numbers, markdown, signed, spread
from benchmarks.study.variants import DEFAULT, FACTORS, GROUPS, HEADLINE, PLOTTED, RIVALS
from benchmarks.study.world import Setting

FINDINGS = Path(__file__).with_name("findings.md")
HALF = 0.5  # of the gain of supervised fine-tuning: a cell with this gain is useful


@dataclass(frozen=True)
class Study:
    """All results.

    Attributes:
        setting: sizes.
        results: on the grid, by variant.
        hot: at multiples of the best learning rate, by variant of `HEADLINE`.
    """

    setting: Setting
    results: dict[str, Result]
    hot: dict[str, Result]

    @property
    def best_rival(self) -> str:
        """The published self-play objective with the largest validation likelihood."""
        return max(RIVALS, key=lambda name: self.results[name].at_best("validation")[:, -1].mean())

    @property
    def useful_gain(self) -> float:
        """Half of the nats that supervised fine-tuning gains in its best cell."""
        sft = self.results["sft"]
        return HALF * float((sft.at_best("forward")[:, 0] - sft.final).mean())

    def difference(self, name: str, other: str) -> Interval:
        """KL of one variant minus another's, paired by seed, each in its best cell after the last iteration."""
        return Interval.of(self.results[name].final - self.results[other].final)


def write_report(study: Study, out: Path) -> None:
    """Writes README.md and the plots."""
    plotted = {name: study.results[name] for name in PLOTTED}
    start = float(study.results["sft"].measures["forward"][..., 0].mean())
    plots.iterations(out / "iterations.svg", plotted)
    plots.rates(out / "rates.svg", plotted, highest=1.1 * start)
    sections = [
        _introduction(study),
        "## Findings\n\n" + findings(study),
        "## Leading variants, rivals and supervised fine-tuning\n\n" + _table(study, HEADLINE),
        "![Divergence after each iteration](iterations.svg)\n\n![Divergence by learning rate](rates.svg)",
        "### After each iteration: KL(p_data‖p_θ), nats\n\n" + _iterations(study),
        "## Panel a: 13 % annotated\n\n" + _annotated_share(study),
        "## Panel b: too high a learning rate\n\n" + _stability(study),
        *(
            f"## {title}\n\n" + _table(study, [variant.name for variant in variants])
            for title, variants in GROUPS.items()
        ),
    ]
    (out / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _introduction(study: Study) -> str:
    setting, results = study.setting, study.results.values()
    everything = [*results, *study.hot.values()]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "scipy"))
    runs = sum(len(result.job.cells) * setting.seeds for result in everything)
    return f"""# A controlled study of self-play objectives

Written by `python -m benchmarks.study` on {datetime.date.today().isoformat()} with Python {platform.python_version()},
{versions}, on {os.cpu_count()} {platform.machine()} cores: {len(study.results)} variants, {runs:,} runs,
{sum(result.seconds for result in everything) / 60:.0f} minutes of computing, shared by the
workers. The study can be killed at any time and continues where it stopped. Panel c,
[self-play with a verifier](verified/README.md), has worlds, students and tables of its own.

{_method(study)}"""


def _method(study: Study) -> str:
    setting = study.setting
    rates, betas = (len(set(values)) for values in zip(*study.results["spin"].job.cells, strict=True))
    return f"""p_data is a fixed random network over {setting.tokens} tokens. It sees a topic (the prompt, one of
{setting.topics}) and the two tokens before. Responses have {setting.length} tokens. The student is a smaller network
that cannot quite express p_data. It starts from supervised fine-tuning on the same {setting.pairs} annotated pairs,
stopped at {setting.warm_share:.0%} of the way to its best validation likelihood. It trains for {setting.iterations}
iterations of {setting.epochs} epochs in batches of {setting.batch} with RMSProp (reset in each iteration; 10 % warm-up,
linear decay, gradient norm clipped at {setting.max_norm:g}), with one sampled synthetic response per prompt and
iteration. **Both divergences are exact**, by dynamic programming over contexts: no Monte-Carlo error. Losses,
normalisers, gap and schedule are the product's own functions.

Each variant has the same grid of {rates} learning rates × {betas} values of β, on {setting.seeds} seeds (each with its
own teacher, data and start). Its cell is the one with the largest mean validation log-likelihood after the last
iteration ({setting.validation} independent pairs per seed); the divergences never choose. Intervals are 95 %, Student's
t over seeds; differences are paired by seed. They do not account for the number of variants compared, nor for the
choice of the cell."""


HEADER = (
    "variant",
    "learning rate, β",
    "KL(p_data‖p_θ)",
    "minus SPIN's",
    "minus the best rival's",
    "iteration chosen on validation",
    "KL(p_θ‖p_data)",
    "grid better than the start",
    "grid with half of SFT's gain",
    "effective pairs, annotated / synthetic",
)


def _table(study: Study, names: list[str]) -> str:
    rows = [_row(study, name) for name in names]
    notes = f"The best rival on validation is {study.best_rival}; half of SFT's gain is {study.useful_gain:.2f} nats."
    return f"{markdown(HEADER, rows)}\n\n{notes} † at the edge of the grid."


def _row(study: Study, name: str) -> list[str]:
    result = study.results[name]
    shares = (result.at_best(f"{side}_share")[:, -1].mean() for side in ("annotated", "synthetic"))
    return [
        f"**{name}**" if name == DEFAULT else name,
        _cell(result),
        spread(Interval.of(result.final)),
        _difference(study, name, "spin"),
        _difference(study, name, study.best_rival),
        f"{result.chosen.mean():.3f}",
        spread(Interval.of(result.at_best("reverse")[:, -1])),
        f"{result.better_share:.0%}",
        f"{result.gain_share(study.useful_gain):.0%}",
        " / ".join(f"{share:.0%}" for share in shares),
    ]


def _cell(result: Result) -> str:
    """The best learning rate and β, with a dagger on a value at the edge of the grid."""
    texts = []
    for value, tried in zip(result.job.cells[result.best], map(set, zip(*result.job.cells, strict=True)), strict=True):
        edge = len(tried) > 1 and value in (min(tried), max(tried))
        texts.append(f"{value:g}{'†' if edge else ''}")
    return ", ".join(texts)


def _difference(study: Study, name: str, other: str) -> str:
    if name == other:
        return "–"
    return signed(study.difference(name, other))


def _iterations(study: Study) -> str:
    rows = [
        [name, *(spread(Interval.of(values)) for values in study.results[name].at_best("forward").T)]
        for name in HEADLINE
    ]
    header = ["variant", "start", *(str(i + 1) for i in range(study.setting.iterations))]
    return markdown(header, rows)


def _annotated_share(study: Study) -> str:
    full = [variant.name for variant in GROUPS["All pairs annotated"]]
    header = ("fine-tuning", "KL(p_data‖p_θ)", "minus SFT's on 13 %", "minus SFT's on 100 %")
    rows = [
        [
            name,
            spread(Interval.of(study.results[name].final)),
            _difference(study, name, "sft"),
            _difference(study, name, full[0]),
        ]
        for name in [*HEADLINE, *full]
    ]
    setting = study.setting
    return (
        f"{setting.pairs} of {setting.all_pairs} pairs are annotated, as 26k are of 200k. All start from the same "
        "student, trained on the 13 %. With all pairs an iteration has the same number of epochs and so more steps.\n\n"
        + markdown(header, rows)
    )


def _stability(study: Study) -> str:
    header = ["variant", "best learning rate, β", "KL at the best"]
    for factor in FACTORS:
        header += [f"at {factor:g}×", f"worse than the start at {factor:g}×"]
    rows = []
    for name in HEADLINE:
        result, hot = study.results[name], study.hot[name].measures["forward"]
        row = [name, _cell(result), spread(Interval.of(result.final))]
        for forward in hot:
            row += [spread(Interval.of(forward[:, -1])), f"{_worse(forward):.0%} of seeds"]
        rows.append(row)
    return markdown(header, rows)


def _worse(forward: Floats) -> float:
    return float((~(forward[:, -1] < forward[:, 0])).mean())


def findings(study: Study) -> str:
    """The paragraphs of findings.md with their numbers; how two variants compare follows from the interval.

    `{kl[variant]}` is the final KL, `{after[variant / 2]}` the KL after two iterations, `{grid[variant]}` the share of
    the grid that helps, `{versus[variant / other]}` a comparison.
    """
    rivals_of_sft = [
        variant.name
        for variants in GROUPS.values()
        for variant in variants
        if variant.objective != "sft" and not variant.all_pairs
    ]
    below = [name for name in rivals_of_sft if study.difference(name, "sft").high < 0]
    template = FINDINGS.read_text(encoding="utf-8").strip()
    return template.format(
        below_sft=f"{len(below)} of {len(rivals_of_sft)}",
        kl=Numbers(lambda name: f"{study.results[name].final.mean():.3f}"),
        after=Numbers(lambda names: _after(study, *names.split(" / "))),
        grid=Numbers(lambda name: _grid(study, name)),
        versus=Numbers(lambda names: _versus(study, *names.split(" / "))),
    )


def _after(study: Study, name: str, iterations: str) -> str:
    return f"{study.results[name].at_best('forward')[:, int(iterations)].mean():.2f}"


def _grid(study: Study, name: str) -> str:
    result = study.results[name]
    return f"{result.better_share:.0%} ({result.gain_share(study.useful_gain):.0%} with half of SFT's gain)"


def _versus(study: Study, name: str, other: str) -> str:
    found = study.difference(name, other)
    size = f"({found.value:+.3f} ± {found.high - found.value:.3f})"
    if not found.excludes_zero:
        return f"not distinguishable from `{other}` {size}"
    return f"{'lower' if found.value < 0 else 'higher'} than `{other}` {size}"
