"""The imports of a stage's process: without libraries that it has no use for, and without garbage collection."""

import ast
import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from iris_core.execution.stage import main
from iris_core.modeling.patches.imports import UNUSED, begin_imports, block_imports, uncollected
from iris_core.pipeline.specs import ScheduleSpec
from iris_core.pipeline.stages import STAGES
from iris_core.schedule import schedule

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[4]


def imported_by(*arguments):
    """Top-level modules that a fresh Python imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_the_stage_train_does_not_import_what_it_does_not_use():
    modules = imported_by("-m", "iris_core.train", "--help")
    assert {"torch", "transformers", "pyarrow"} <= modules
    assert not {*UNUSED, "httpx"} & modules


def test_transformers_still_imports_them_where_nothing_is_blocked():
    """Where this fails, a library is imported no more, or on first use only: remove its name from the patch."""
    assert set(UNUSED) <= imported_by("-c", "import iris_core.train")


@pytest.mark.parametrize("stage", sorted({*STAGES} - {"schedule"}))  # which imports nothing large
def test_a_stage_begins_with_it(stage):
    tree = ast.parse((ROOT / f"iris_core/{stage}.py").read_text(encoding="utf-8"))
    imports = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    others = [name for name in imports if name.split(".")[0] not in sys.stdlib_module_names]
    assert others[0] == begin_imports.__module__


def test_garbage_is_not_collected_until_the_stage_begins(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["schedule", "--help"])
    frozen = gc.get_freeze_count()
    try:
        begin_imports()
        assert not gc.isenabled()
        with pytest.raises(SystemExit):
            main(ScheduleSpec, schedule)
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.enable()


def test_garbage_is_not_collected_while_a_command_imports():
    frozen = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_a_blocked_library_appears_not_to_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "colorsys", None)  # so that it is restored
    del sys.modules["colorsys"]
    block_imports(["colorsys", "sys"])
    assert importlib.util.find_spec("colorsys") is None
    with pytest.raises(ModuleNotFoundError, match="colorsys"):
        importlib.import_module("colorsys")
    assert sys.modules["sys"] is sys
