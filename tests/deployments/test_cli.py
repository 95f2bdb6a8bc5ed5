"""The command `iris`: a user's error is one line and exit code 2, before anything heavy starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments import cli, demo, services
from deployments.cli import app
from iris_core.common.errors import ConfigError
from iris_core.common.ports import free_port
from iris_core.config.recipe import load_recipe
from iris_core.demo.sql_databases import write_folder
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    content = {
        "name": "e",
        "store": str(tmp_path / "store"),
        "model": {"path": str(tmp_path / "model")},
        "data": {"path": str(tmp_path / "pairs.jsonl")},
        "evaluation": {"data_dir": "miniature"},
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    path.write_text(yaml.safe_dump(content))
    return path


def run(*arguments: str, code: int = 2) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_missing_recipe() -> None:
    assert "there is no recipe nowhere.yaml" in run("run", "nowhere.yaml")


def test_unknown_key_names_the_known_ones(recipe: Path) -> None:
    said = run("run", str(recipe), "--set", "training.epoch=1")
    assert "training.epoch: unknown key" in said
    assert "epochs" in said


def test_value_out_of_range(recipe: Path) -> None:
    assert "objective.beta" in run("run", str(recipe), "--set", "objective.beta=-1")


@pytest.mark.parametrize("setting", ["training.epochs", "training.epochs=[1", "=1"])
def test_malformed_setting(recipe: Path, setting: str) -> None:
    key = setting.partition("=")[0]
    assert f"--set {key}" in run("run", str(recipe), "--set", setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("store=/proc/store", "store: cannot write /proc/store/e"),
        ("tracking.uri=http://127.0.0.1:9", "tracking.uri: no MLflow server answers"),
        ("tracking.uri=./mlruns", "is a file store"),
        ("evaluation.data_dir=/nowhere", "evaluation.data_dir: there is no folder /nowhere"),
        ("model.path=/nowhere", "model.path: there is no folder /nowhere"),
        ("tracking.registered_model=a/b", "tracking.registered_model: MLflow takes no name with /"),
        ("seed=1732636800000", "seed: Input should be less than 4294967296 (got 1732636800000)"),
        (
            "training.epochs=064",
            "training.epochs: Input should be a valid integer (got '064'): write 64",
        ),
    ],
)
def test_a_wrong_setting_is_named_before_a_server_starts(
    recipe: Path, tmp_path: Path, setting: str, message: str
) -> None:
    assert message in run("run", str(recipe), "--set", setting)
    assert not (tmp_path / "store" / ".prefect").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("objective.name=sft", "objective.name is sft, which is the baseline itself"),
        ("schedule.stop_when_converged=true", "set it to false, or run the loop alone, with --no-with-sft"),
    ],
)
def test_what_has_no_baseline_is_refused_before_a_server_starts(
    recipe: Path, tmp_path: Path, setting: str, message: str
) -> None:
    assert message in " ".join(run("run", str(recipe), "--with-sft", "--set", setting).split())
    assert not (tmp_path / "store").exists()


def test_full_disk(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    assert "free some space or set `store`" in run("run", str(recipe))
    assert not (tmp_path / "store" / ".prefect").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense", "http://[no"])
def test_prefect_server_that_does_not_answer(recipe: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    said = run("run", str(recipe))
    assert "PREFECT_API_URL" in said
    assert "unset it" in said


def test_report_of_an_unknown_experiment_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "experiment.json").write_text("{}")
    assert "it holds: known" in run("report", "other", "--store", str(tmp_path))


def test_report_shows_the_table(tmp_path: Path) -> None:
    small = SmallExperiment(tmp_path, [0.3])
    small.initial()
    small.iterations()
    said = run("report", "small", "--store", str(tmp_path / "store"), code=0)
    assert "-1.50" in said
    assert "What is 0 + 0?" in said
    assert "report:" in said


def test_down_with_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path))
    monkeypatch.setattr(services, "CHECKOUT", tmp_path)  # services of this checkout may be up
    assert "nothing is running" in run("down", code=0)


@pytest.mark.parametrize("command", ["up", "down", "demo", "sql-demo"])
def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "file"))
    assert "set IRIS_CACHE" in run(command)


def test_store_of_services_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="choose another store"):
        services.up(tmp_path / "file", free_port(), free_port())


@pytest.mark.parametrize("port", ["0", "70000"])
def test_invalid_port(port: str) -> None:
    for option in ("--prefect-port", "--mlflow-port"):
        assert f"Invalid value for '{option}'" in run("up", option, port)


def test_one_port_for_two_servers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="port 4200 is asked for twice"):
        services.up(tmp_path, 4200, 4200)


def test_starting_the_command_is_quick_and_light() -> None:
    """Help must not wait for Prefect, torch or MLflow."""
    code = "import sys, deployments.cli; print({'prefect', 'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "deployments" / "recipes").glob("*.yaml")))
def test_recipes_are_experiments(path: Path) -> None:
    experiment = load_recipe(path)
    assert experiment.name == path.stem


def test_recipe_that_comes_with_iris_is_found_by_name() -> None:
    from deployments.demo import recipe_path

    assert recipe_path("demo").is_file()
    assert recipe_path("demo.yaml").is_file()
    assert recipe_path("other.yaml") == Path("other.yaml")


def test_demo_inputs_are_made_once_and_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    from iris_core.demo import model

    monkeypatch.setenv("IRIS_CACHE", str(tmp_path))
    os.symlink(tiny_model, tmp_path / "made")
    (tmp_path / "models").mkdir()
    os.symlink(tiny_model, model.default_path())  # complete, so nothing is converted
    zero, one = demo.make_inputs(0), demo.make_inputs(1)
    assert (zero["name"], one["name"]) == ("demo", "demo-seed-1")
    files = [Path(str(inputs["data.path"])) for inputs in (zero, one)]
    assert files[0].read_text() != files[1].read_text()
    assert {Path(str(one[f"data.{name}"])).parent for name in ("path", "heldout_path", "prompts_path")} == {
        files[1].parent
    }
    experiment = load_recipe(demo.RECIPES / "demo.yaml", zero)
    assert Path(experiment.model.path) == model.default_path()


@pytest.mark.parametrize(
    ("arguments", "beside"),
    [
        (["demo"], True),
        (["demo", "--no-with-sft"], False),
        (["demo", "--set", "objective.name=sft"], False),
        (["sql-demo"], False),
        (["sql-demo", "--with-sft"], True),
    ],
)
def test_the_demo_has_its_baseline_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, arguments: list[str], beside: bool
) -> None:
    from iris_core.demo import model

    runs = []
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir()
    os.symlink(tiny_model, model.default_path())
    monkeypatch.setattr(cli, "run_loop", lambda experiment, with_sft: runs.append((experiment.name, with_sft)))
    run(*arguments, code=0)
    assert runs == [(arguments[0], beside)]


def test_pairs_for_text_to_sql_are_written_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    spider, out = tmp_path / "spider", tmp_path / "out"
    write_folder(spider, seed=0, questions=20)
    held = json.loads((spider / "dev.json").read_text())
    queries = ("SELECT name FROM doctor WHERE pay < 0", "SELECT nothing FROM doctor", "SELECT pay FROM doctor")
    held += [{"db_id": "hospital", "question": f"{query}?", "query": query} for query in queries]
    (spider / "dev.json").write_text(json.dumps([*held, {**held[0], "db_id": "lost"}]))
    settings = ("--set", f"model.path={tiny_model}", "--set", "data.max_prompt_tokens=4000")
    said = run("sql-pairs", "sql-demo", str(spider), "--out", str(out), *settings, code=0)
    assert [" ".join(line.split()) for line in said.splitlines()] == [
        "160 pairs.jsonl",
        "82 heldout.jsonl",
        "1 of heldout.jsonl: the query finds nothing",
        "1 left out of heldout.jsonl: its query does not run, or is over a limit",
        "1 left out of heldout.jsonl: its database is missing",
    ]
    assert (out / "databases" / "hospital" / "hospital.sqlite").is_file()
