"""A training process does without libraries that it has no use for."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit


def imported_by(*arguments):
    """Top-level modules that a fresh Python imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_the_stage_train_leaves_out_what_it_does_not_use():
    modules = imported_by("-m", "iris_core.train", "--help")
    assert {"torch", "transformers", "pyarrow"} <= modules
    assert not {"sklearn", "scipy"} & modules


def test_who_imports_the_stage_keeps_them():
    assert {"sklearn", "scipy"} <= imported_by("-c", "import iris_core.train")
