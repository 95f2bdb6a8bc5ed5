"""Blocked imports: a training process does without libraries that it has no use for."""

import importlib.util
import subprocess
import sys

import pytest

from iris_core.modeling.patches.imports import block_imports

pytestmark = pytest.mark.unit


def imported_by(*arguments):
    """Top-level modules that a fresh Python imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_the_stage_train_does_not_import_what_it_does_not_use():
    modules = imported_by("-m", "iris_core.train", "--help")
    assert {"torch", "transformers", "pyarrow"} <= modules
    assert not {"sklearn", "scipy"} & modules


def test_transformers_still_imports_them_where_nothing_is_blocked():
    """Where this fails, transformers imports scikit-learn no more, or on first use only: remove the patch."""
    assert {"sklearn", "scipy"} <= imported_by("-c", "import iris_core.train")


def test_a_blocked_library_appears_not_to_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "colorsys", None)  # so that it is restored
    del sys.modules["colorsys"]
    block_imports(["colorsys", "sys"])
    assert importlib.util.find_spec("colorsys") is None
    with pytest.raises(ModuleNotFoundError, match="colorsys"):
        importlib.import_module("colorsys")
    assert sys.modules["sys"] is sys
