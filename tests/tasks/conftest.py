"""A real Prefect server for the tests of tasks, and a test stage that can be launched like any other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.testing.utilities import prefect_test_harness

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        first()
        yield


@flow
def first() -> None:
    """A run to lose: after another server in this process, Prefect drops what its first run sends."""
    nothing()


@task
def nothing() -> None:
    """Sends its states."""


@pytest.fixture
def slow_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m iris_core.slow` works in subprocesses."""
    path = os.pathsep.join([str(ROOT / "tests" / "stages"), str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", path)
