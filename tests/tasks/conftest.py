"""A real Prefect server for the tests of tasks, and a test stage that can be launched like any other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prefect_server import new_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def prefect_server() -> Iterator[None]:
    with new_server():
        yield


@pytest.fixture
def slow_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m iris_core.slow` works in subprocesses."""
    path = os.pathsep.join([str(ROOT / "tests" / "stages"), str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", path)
