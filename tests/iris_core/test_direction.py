"""Imports go one way: between the sub-packages of `iris_core`, and from `deployments` down to it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from iris_core.pipeline.stages import STAGES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "iris_core",
    "tasks",
    "flows",
    "deployments",
)  # each may import itself and those before it
SUBPACKAGES = (
    "common",
    "sql",
    "config",
    "store",
    "objectives",
    "execution",
    "verification",
    "tracking",
    "data",
    "pipeline",
    "modeling",
    "training",
    "generation",
    "evaluation",
    "reporting",
)
MODULES = {"__init__", *STAGES, "load", "doctor", "mirror", "sql_predictions", "synthesize_sql"}


def imports(file: Path) -> Iterator[str]:
    """The dotted names that `file` imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def upward(file: str, name: str) -> bool:
    """Whether importing `name` in the file with the path `file`, relative to the root, goes up."""
    (package, *rest), (other, *inside) = Path(file).with_suffix("").parts, name.split(".")
    if other not in PACKAGES:
        return other == "prefect" and package == "iris_core"
    if other != package:
        return PACKAGES.index(other) > PACKAGES.index(package)
    if package != "iris_core" or rest[0] not in SUBPACKAGES:
        return False
    return inside[0] not in SUBPACKAGES[: SUBPACKAGES.index(rest[0]) + 1]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    files = [file.relative_to(ROOT) for file in sorted((ROOT / package).rglob("*.py"))]
    assert files
    found = [f"{file}: {name}" for file in files for name in imports(ROOT / file) if upward(str(file), name)]
    assert found == []


@pytest.mark.parametrize(
    ("file", "name", "expected"),
    [
        ("iris_core/data/pairs.py", "iris_core.store.Store", False),
        ("iris_core/data/pairs.py", "iris_core.data.rows.read_rows", False),
        ("iris_core/store/stages.py", "iris_core.data.pairs.Pair", True),
        ("iris_core/evaluation/harness.py", "iris_core.mirror.mirror", True),
        ("iris_core/train.py", "iris_core.training.trainer", False),
        ("iris_core/train.py", "prefect.flow", True),
        ("iris_core/train.py", "tasks.train.train", True),
        ("flows/iris.py", "deployments.server", True),
        ("flows/iris.py", "tasks.train.train", False),
        ("flows/iris.py", "prefect.flow", False),
    ],
)
def test_what_counts_as_upward(file: str, name: str, expected: bool) -> None:
    assert upward(file, name) is expected


def test_every_module_is_in_a_sub_package() -> None:
    assert {file.stem for file in (ROOT / "iris_core").glob("*.py")} == MODULES
    found = {file.parent.name for file in (ROOT / "iris_core").glob("*/__init__.py")}
    assert found == {*SUBPACKAGES, "demo"}
