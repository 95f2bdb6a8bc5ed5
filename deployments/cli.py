"""The command `iris`.

    iris run deployments/recipes/demo.yaml --set training.epochs=1
    iris demo --seed 1

It runs a recipe or a demo, plans its memory, writes the report, makes pairs for text-to-SQL, checks the machine, starts
and stops the services.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deployments import ends
from deployments.ends import errors, handle_errors
from iris_core.common.errors import ConfigError, IrisError, ModelError, StageFailed
from iris_core.common.mirrors import is_remote
from iris_core.config import Experiment
from iris_core.config.recipe import load_recipe, parse_settings

if TYPE_CHECKING:
    from iris_core.store import Store

app = typer.Typer(
    help="Self-play fine-tuning of language models: runs the loop, shows what it did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(emoji=False)

SET_HELP = (
    "Change a setting, as in training.epochs=1. VALUE is a number, true, false, null or text, which may contain # "
    "and :. If it starts with [, {, \" or ' it is YAML: a list, a mapping, quoted text. A mapping changes only the "
    "keys it names."
)
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP),
]
WithSft = Annotated[
    bool,
    typer.Option(
        "--with-sft/--no-with-sft", help="Then run supervised fine-tuning on the same pairs, too, and compare."
    ),
]
StoreOption = Annotated[str, typer.Option(help="The store: a folder, or s3://bucket/prefix.")]
STORE = "iris-store"


@app.command("run")
@handle_errors
def run_command(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with IRIS.")],
    set_: Settings = None,
    with_sft: WithSft = False,
) -> None:
    """Run the loop on a recipe; run it again to resume."""
    from deployments.demo import recipe_path

    run_loop(load_recipe(recipe_path(recipe), parse_settings(set_ or [])), with_sft)


@app.command()
@handle_errors
def demo(
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**32 - 1, help="Of the annotated set and everything random."),
    ] = 0,
    set_: Settings = None,
    with_sft: WithSft = True,
) -> None:
    """Watch a real 135M chat model learn by verified self-play, and by supervised fine-tuning beside it."""
    from deployments.demo import RECIPES, make_inputs

    console.print("making the demo's model and annotated set", style="dim")
    overrides = {**make_inputs(seed), **parse_settings(set_ or [])}
    experiment = load_recipe(RECIPES / "demo.yaml", overrides)
    run_loop(experiment, with_sft and experiment.objective.name != "sft")


@app.command("sql-demo")
@handle_errors
def sql_demo(
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the databases and everything random.")] = 0,
    set_: Settings = None,
    with_sft: WithSft = False,
) -> None:
    """Watch the demo's model learn text-to-SQL on small databases, by executing its queries."""
    from deployments.demo import RECIPES, make_sql_inputs

    console.print("making the demo's model, databases and questions", style="dim")
    overrides = {**make_sql_inputs(seed), **parse_settings(set_ or [])}
    run_loop(load_recipe(RECIPES / "sql-demo.yaml", overrides), with_sft)


@app.command("sql-pairs")
@handle_errors
def sql_pairs(
    recipe: Annotated[str, typer.Argument(help="The recipe that will train on the pairs: it names the model.")],
    folder: Annotated[Path, typer.Argument(help="A folder with questions and databases, as Spider or BIRD has it.")],
    out: Annotated[Path, typer.Option(help="Folder for pairs.jsonl, heldout.jsonl and databases/.")],
    set_: Settings = None,
) -> None:
    """Write the questions of Spider or BIRD as annotated pairs, with the schema in the prompt."""
    from deployments.demo import recipe_path
    from deployments.terminal import show
    from iris_core.sql.questions import Folder, write_pairs
    from iris_core.synthesize_sql import budget_of, open_chat
    from iris_core.verification.sql import limits_of

    source = Folder(folder)
    experiment = load_recipe(recipe_path(recipe), parse_settings(set_ or []))
    budget, limits = budget_of(experiment, open_chat(experiment)[1]), limits_of(experiment.verification)
    found = write_pairs(source, out, budget, limits)
    for label, counts in {
        "{}": found.written,
        "of {}: the query finds nothing": found.unproven,
        "in a shorter prompt: {}": found.shortened,
        "left out of {}": found.left_out,
    }.items():
        for name, count in counts.items():
            show(console, f"{count:>8}  {label.format(name)}")


@app.command("sql-predictions")
@handle_errors
def sql_predictions(
    folder: Annotated[Path, typer.Argument(help="The folder that `iris sql-pairs` was given.")],
    pairs: Annotated[Path, typer.Argument(help="The heldout.jsonl that it wrote.")],
    answers: Annotated[Path, typer.Argument(help="The heldout.parquet of a run on them, an artifact in MLflow.")],
    out: Annotated[Path, typer.Option(help="File to write: for BIRD's script if it ends in .json, else for Spider's.")],
) -> None:
    """Write a run's queries as the scripts of Spider and BIRD read them."""
    from deployments.terminal import show
    from iris_core.sql.questions import Folder
    from iris_core.sql_predictions import write_predictions

    questions, missing = write_predictions(Folder(folder), pairs, answers, out)
    show(console, f"{questions:>8}  questions in {out}, {missing} of them without an answer")


@app.command("synthesize-sql")
@handle_errors
def synthesize_sql(
    recipe: Annotated[str, typer.Argument(help="A recipe whose pairs `iris sql-pairs` has written.")],
    out: Annotated[Path, typer.Option(help="File for the pairs, for `data.path` beside the annotated ones.")],
    queries: Annotated[int, typer.Option(min=1, help="Queries that the model writes on each database.")] = 64,
    answers: Annotated[
        int, typer.Option(min=0, help="Its answers to a question, of which one must have the query's result; 0: any.")
    ] = 4,
    set_: Settings = None,
) -> None:
    """Let the model write more pairs for text-to-SQL: queries that run, and the questions that they answer."""
    from deployments.demo import recipe_path
    from deployments.terminal import show
    from iris_core.synthesize_sql import synthesize

    experiment = load_recipe(recipe_path(recipe), parse_settings(set_ or []))
    found = synthesize(experiment, out, queries, answers, functools.partial(show, console))
    for reason, count in found.left_out.items():
        show(console, f"{count:>8}  left out, {reason}")
    show(console, f"{found.pairs:>8}  pairs in {out}, on {found.databases} databases")


@app.command()
@handle_errors
def report(
    name: Annotated[str, typer.Argument(help="The experiment's name.")],
    store: StoreOption = STORE,
) -> None:
    """Write an experiment's report again and show its table."""
    from iris_core.reporting.page import write_report
    from iris_core.store import Store
    from iris_core.store.experiment import IDENTITY

    found = Store(store, name)
    found.pull()
    if not found.home.is_dir():
        held = ", ".join(sorted(mark.parent.name for mark in found.root.glob(f"*/{IDENTITY}")))
        raise ConfigError(f"{found.root} holds no experiment {name!r}; it holds: {held or 'none'}")
    path = write_report(found)
    from deployments.terminal import show, show_result

    show_result(console, found)
    show(console, f"report: {path}")


@app.command()
@handle_errors
def plan(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with IRIS.")],
    gpus: Annotated[
        str | None,
        typer.Option(help="Machine to plan for, as 8xH100-80GB, or several, as 2x8xH100-80GB; left out: the run's."),
    ] = None,
    set_: Settings = None,
) -> None:
    """Show what a recipe needs of a machine; exit code 2 where its training does not fit."""
    from deployments.demo import recipe_path
    from deployments.terminal import show
    from iris_core.modeling.patches.imports import uncollected
    from iris_core.reporting.machine import machine_of, parse_machine
    from iris_core.reporting.resources import resources, rows

    experiment = load_recipe(recipe_path(recipe), parse_settings(set_ or []))
    with uncollected():
        from iris_core.modeling.sizes import recipe_sizes
    machine = parse_machine(gpus) if gpus else machine_of(experiment.execution)
    needs = resources(experiment, recipe_sizes(experiment), machine)
    show(console, f"{experiment.name} on {needs.machine}")
    for part, size in rows(needs):
        show(console, f"  {part:<58} {size}")
    for assumption in needs.assumptions:
        show(console, f"  {assumption}")
    needs.check()


@app.command()
@handle_errors
def doctor() -> None:
    """Show what this machine has, what is missing, and what to type."""
    from iris_core import doctor as examination

    examination.main()


@app.command()
@handle_errors
def up(
    store: StoreOption = STORE,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
) -> None:
    """Start a Prefect server, MLflow and a worker, and apply the deployments."""
    from deployments import credentials, services
    from deployments import demo as inputs

    echo = functools.partial(console.print, style="dim")
    try:
        inputs.make_inputs(seed=0)  # the deployments' default parameters name them
        inputs.make_sql_inputs(seed=0)
    except ModelError as error:
        echo(f"the deployments' default parameters will not run: {error}", markup=False)
    if is_remote(store):
        raise ConfigError(f"--store: {store} cannot hold the databases of servers: give a folder")
    running = services.up(Path(store), prefect_port, mlflow_port, echo=echo)
    credentials.link(services.CHECKOUT)
    shown = running.login if console.is_terminal else f"{running.prefect}  (credentials: below)"
    for line in (
        f"Prefect  {shown}",
        f"MLflow   {running.mlflow}",
        f"run      prefect deployment run iris/full-loop --watch  (in {services.CHECKOUT})",
        f"         elsewhere: export PREFECT_PROFILES_PATH={shlex.quote(str(credentials.path()))}",
        "stop     iris down",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
@handle_errors
def down() -> None:
    """Stop what `iris up` started, its flow runs included."""
    from deployments import services

    services.down(echo=functools.partial(console.print, style="dim"))


def run_loop(experiment: Experiment, with_sft: bool = False) -> None:
    """Runs the loop in this process and shows it in the terminal, `with_sft` beside its baseline.

    Raises:
        IrisError: what stopped the loop; a crashed stage's last log lines are printed first.
    """
    from deployments.outage import Outage
    from deployments.server import prefect_api
    from flows.checks import check_services
    from iris_core.pipeline import members

    if with_sft:
        members.with_sft(experiment)  # refuses one that cannot be compared, before a server starts
    outage = Outage(experiment.tracking.patience, ends.echo, ends.end_with)
    ends.end_on_signals(lambda: outage.lasts)
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # the display shows it
    logging.raiseExceptions = False  # a log line that cannot be sent to Prefect is not an error of the loop
    store = check_services(experiment)
    explained = ends.explained(store.root, lambda: os.environ.get("PREFECT_API_URL", "its server"))
    with explained, prefect_api(store.root, outage):
        _run_flow(experiment, store, with_sft)
    from deployments import terminal
    from iris_core.reporting.trajectories import read_trajectories
    from iris_core.store import require_manifest
    from iris_core.store.places import COMPARISON

    if with_sft:  # the display has shown what each loop gave
        compared = require_manifest((store.home / COMPARISON).resolve()).artifact("comparison")
        terminal.show_beside(console, read_trajectories(compared.intact()), "sft")
    else:
        terminal.show_result(console, store)
    terminal.show_places(console, store, ends.again(), experiment.tracking.uri, compared=with_sft)


def _run_flow(experiment: Experiment, store: Store, with_sft: bool) -> None:
    """Runs the loop, and `with_sft` its baseline."""
    from prefect import tags

    from deployments import lost, terminal
    from flows.compare import compare_with_sft
    from flows.iris import iris
    from tasks.stage import watched_by

    display = terminal.Display(console)
    try:
        with (
            lost.alive(store.root) as tag,
            tags(lost.TAG, tag),
            display.live(),
            watched_by(display),
        ):
            if with_sft:
                compare_with_sft(experiment)
            else:
                iris(experiment)
    except IrisError as error:
        if display.failed and isinstance(error, StageFailed):
            log = terminal.end_of_log(display.failed)
            errors.print(log, style="dim", markup=False, highlight=False, soft_wrap=True)
        raise
    finally:
        terminal.flush_prefect()


if __name__ == "__main__":
    app()
