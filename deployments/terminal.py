"""What the terminal shows while the loop runs, and at its end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from deployments.processes import end_of
from iris_core.common.errors import IrisError
from iris_core.common.markup import one_line, plain
from iris_core.common.progress import Advance
from iris_core.common.redaction import redact
from iris_core.config.verification import accuracy_name
from iris_core.pipeline.comparable import verifier_of
from iris_core.pipeline.metrics import (
    EvaluateMetrics,
    GenerateMetrics,
    PrepareMetrics,
    RegisterMetrics,
    ScheduleMetrics,
    TrainMetrics,
    stage_metrics,
)
from iris_core.reporting.summary import (
    OTHER,
    Warned,
    cells,
    champion,
    place_name,
    rows,
    samples,
    verifier_in,
    warnings,
)
from iris_core.reporting.trajectories import Trajectory
from iris_core.store import Metrics, Store
from iris_core.store.places import COMPARISON, iteration_name
from tasks.stage import Finished, describe, log_file

ECHO_EVERY_S = 20.0  # progress lines, where the output is no terminal
NARROW_HEADERS = (  # those of `iris_core.reporting.summary`, for a width of 80
    "iter.",
    "α",
    "gap D̂\n(ESS)",
    "ESS\nann.\nsyn.",
    "reward\nmargin",
    "log-prob\n/ token\n[95 %]",
)


class Display:
    """A line for each stage that has ended, a moving bar for the one that runs. A `tasks.stage.Watcher`.

    Attributes:
        failed: the log file of the stage that failed.
        store: of the loop whose stages run.
    """

    def __init__(self, console: Console):
        self.console = console
        self.failed: Path | None = None
        self.store: Store | None = None
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar: TaskID | None = None
        self.begun = self.echoed = 0.0

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draws the bar while the block runs."""
        with self.progress:
            yield

    def started(self, store: Store, place: str) -> None:
        """A bar appears."""
        self._enter(store)
        self.begun = self.echoed = time.monotonic()
        self.bar = self.progress.add_task(place_name(place), total=None, text="starting")

    def progressed(self, place: str, event: Advance) -> None:
        """The bar moves; without a terminal, a line now and then."""
        text = describe(event)
        phase = one_line(event.stage.partition(": ")[2])
        if self.bar is not None:
            shown = f"{phase} {text}".strip()
            self.progress.update(self.bar, total=event.total, completed=event.done, text=shown)
        if not self.console.is_terminal and time.monotonic() - self.echoed > ECHO_EVERY_S:
            self.echoed = time.monotonic()
            show(self.console, f"  … {place_name(place)}  {phase} {text}")

    def noticed(self, place: str, text: str) -> None:
        """What the stage waits for, in a line that stays."""
        show(self.console, "  ", (f"… {place_name(place)}  {one_line(redact(text))}", "yellow"))

    def ended(self, store: Store, place: str, finished: Finished | None) -> None:
        """A line that stays replaces the bar."""
        self._enter(store)
        if self.bar is not None:
            self.progress.remove_task(self.bar)
            self.bar = None
        if finished is None:
            self.failed = log_file(store, place)
            return
        seconds = "reused" if finished.reused else _duration(time.monotonic() - self.begun)
        mark, numbers = ("✓", "green"), (one_line(summary_line(finished)), "dim")
        show(self.console, mark, f" {place_name(place):<24} {seconds:>7}  ", numbers)
        for text in Metrics.of(finished).warnings:
            show(self.console, "  ", (f"! {one_line(redact(text))}", "yellow"))

    def _enter(self, store: Store) -> None:
        """Above the first line of a loop: what the one before gave, and the loop's name."""
        if self.store and store.home == self.store.home:
            return
        before, self.store = self.store, store
        if before:
            try:
                show_result(self.console, before)
            except IrisError as error:  # a file is damaged, which the loop that begins does not need
                show(self.console, ("!", "yellow"), f" {one_line(redact(str(error)))}")
        show(self.console, (one_line(store.home.name), "bold"))


def summary_line(finished: Finished) -> str:
    """A finished stage's most important numbers."""
    match stage_metrics(finished.stage, finished):
        case PrepareMetrics() as found:
            prompts = f"{found.prompts} prompts without annotation, " if found.prompts else ""
            return f"{found.train_pairs} pairs to train on, {prompts}{found.heldout_pairs} held out"
        case GenerateMetrics() as found:
            cut = f", {found.truncated / found.responses:.0%} truncated" if found.truncated else ""
            return f"{found.responses} answers, {found.mean_tokens:.0f} tokens each{cut}{_verdicts(found)}"
        case TrainMetrics() as found:
            return f"gap {found.gap.value:.3f}, held-out reward margin {found.heldout.reward_margin:.3f}"
        case EvaluateMetrics() as found:
            average = [f"average {100 * found.average.value:.1f} %"] if found.average else []
            exact = [f"{_accuracy(finished)} {found.heldout.exact_match.value:.2f}"] if found.heldout else []
            return ", ".join([*average, *exact])
        case ScheduleMetrics() as found:
            return f"next α {found.next_order:.3g}: {found.reason}"
        case RegisterMetrics(version=int(version)) as found:
            return f"model version {version}{', champion' if found.champion else ''}"
    return ""


def _verdicts(found: GenerateMetrics) -> str:
    """The shares of the verdicts on the responses, in percent; nothing without a verifier."""
    if not found.shares:
        return ""
    right, wrong, undecided, mixed = (f"{share:.0%}" for share in found.shares.values())
    return f"; {right} right, {wrong} wrong, {undecided} undecided, {mixed} of prompts with both"


def _accuracy(finished: Finished) -> str:
    """What the share of right held-out answers is called."""
    return accuracy_name(verifier_of(finished.manifest()))


def show_result(console: Console, store: Store) -> None:
    """The table of iterations, and some answers before and after."""
    found = rows(store)
    label = next((row.label for row in found if row.label), "average")
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    accuracy = _narrow_name(verifier_in(found))
    names = [*NARROW_HEADERS, f"{accuracy}\n[95 %]", f"{label}\n%"]
    lines = [cells(row) for row in found]
    shown = len(names) if any(line[-1] for line in lines) else len(names) - 1  # no benchmark may have been asked for
    for name in names[:shown]:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(_narrow, line[:shown]))
    show(console, "\n", (one_line(store.home.name), "bold"), ": the model after each iteration")
    console.print(table)
    if best := champion(store):
        version = f"champion  version {best.version}, {place_name(iteration_name(best.iteration))}"
        show(console, f"{version}: {plain(best.note)}\n")
    show_warnings(console, warnings(store))
    for sample in samples(store):
        answers = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        answers.add_row("annotated", Text(plain(sample.annotated)))
        answers.add_row("before", Text(plain(sample.before)), style="yellow")
        answers.add_row("after", Text(plain(sample.after)), style="green")
        show(console, (plain(sample.prompt), "bold"))
        console.print(answers)
        console.print()


def show_beside(console: Console, found: Sequence[Trajectory], baseline: str) -> None:
    """What each objective gave after each iteration, and by how much the others differ from the `baseline`.

    Accuracy, or log-prob per token where answers were not checked.
    """
    checked = all(trajectory.exact_match for trajectory in found)
    measure, digits = (accuracy_name(found[0].verifier), ".2f") if checked else ("log-prob, nats per token", ".3f")
    values = [trajectory.exact_match if checked else trajectory.logprob for trajectory in found]
    models = ["initial", *map(str, range(len(found[0].logprob) - 1))][-len(values[0]) :]
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in ("iter.", *(f"{trajectory.objective} [95 %]" for trajectory in found)):
        table.add_column(name, justify="right", no_wrap=True)
    for model, row in zip(models, zip(*values, strict=True), strict=True):
        table.add_row(model, *(f"{value:{digits}}" for value in row))
    table.add_row("steps", *(f"{trajectory.steps:.0f}" for trajectory in found))
    show(console, "\n", (f"{measure} on held-out prompts", "bold"), " after each iteration, and steps of training")
    console.print(table)
    for trajectory in found:
        if trajectory.objective != baseline:
            difference = trajectory.differences[baseline]
            shown = difference.accuracy if checked and difference.accuracy else difference.logprob
            show(console, f"{trajectory.objective} − {baseline}: {shown:+{digits}}, paired by prompt\n")


def show_warnings(console: Console, found: list[Warned]) -> None:
    """The warnings, each with its stage; nothing if there are none."""
    if not found:
        return
    show(console, ("warnings", "bold yellow"), f" ({len(found)})")
    for warned in found:
        text = one_line(redact(warned.text))
        show(console, ("!", "yellow"), f" {place_name(warned.place)}: {text}")
    console.print()


def show_places(
    console: Console,
    store: Store,
    again: str,
    tracking_uri: str | None = None,
    *,
    compared: bool = False,
) -> None:
    """Where the report and the UIs are, and what to type next.

    Args:
        console: the terminal.
        store: the experiment's.
        again: the command that ran it.
        tracking_uri: an MLflow that the recipe names; None: MLflow is a file in the store, which `iris up` serves.
        compared: its baseline ran, too.
    """
    up = (
        "iris up"
        if store.root == Path("iris-store").absolute()
        else shlex.join(["iris", "up", "--store", str(store.root)])
    )
    served = "http://127.0.0.1:5000  runs, metrics, model versions; type: " + up
    named = tracking_uri and f"{redact(tracking_uri)}  runs, metrics, model versions"
    for line in (
        f"report   {store.home / 'report.html'}",
        *([f"compared {store.home / COMPARISON / 'comparison.html'}"] if compared else []),
        f"MLflow   {named or served}",
        f"Prefect  http://127.0.0.1:4200  flow runs, logs, artifacts; type: {up}",
        f"again    {again}  (what is finished is reused)",
    ):
        show(console, plain(line))


def show(console: Console, *parts: str | tuple[str, str]) -> None:
    """Prints a line of parts, plain or with a style, without rich's markup and emoji. The terminal wraps it."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def flush_prefect() -> None:
    """Sends the log lines and states that Prefect still holds, before its server ends."""
    APILogHandler().flush()
    EventsWorker.drain_all()


def end_of_log(log: Path) -> str:
    """The last lines of a stage's log."""
    if not log.exists():
        return ""
    return end_of(log.read_text(encoding="utf-8"))


def _narrow(text: str) -> str:
    """A cell on two lines: the value, and the interval or second value below it."""
    if text == OTHER:
        return text.replace(" ", "\n")
    for mark in (" [", " (", " / ", " ± "):
        text = text.replace(mark, f"\n{mark.strip()}" if mark != " / " else "\n")
    return text


def _narrow_name(verifier: str | None) -> str:
    """What accuracy is called, on several lines."""
    if verifier is None:
        return "exact\nmatch"
    kind = verifier.replace("_", "\n")
    return f"accur.\n({kind})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
