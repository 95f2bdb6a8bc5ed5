"""The command line of a stage: a spec that does not fit is one line with file, field, value and remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iris_core.common.errors import ConfigError
from iris_core.execution.stage import read_spec
from tests.stages.slow import SlowSpec

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"execution": {"gpus_per_node": 0}},
            "execution.gpus_per_node: Input should be greater than or equal to 1 (got 0)",
        ),
        ({"execution": {"patience": -1}}, "execution.patience: Input should be greater than or equal to 0 (got -1)"),
        ({"execution": 2}, "execution: a mapping with the keys launcher, nodes, "),
        ({"sleep": 2}, "sleep: unknown key; known here: versions, execution, action"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"action": "leave", **changed}))
    with pytest.raises(ConfigError) as error:
        read_spec(SlowSpec, path)
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"spec.json: Invalid JSON: EOF"),
        (b"{}", r"spec.json: action: missing; add it$"),
        (b"\xff", r"--spec: .*spec.json cannot be read \(.*invalid start byte\): give a stage's spec.json$"),
    ],
)
def test_what_is_no_spec_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "spec.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_spec(SlowSpec, path)
    assert ": :" not in str(error.value)
    with pytest.raises(ConfigError, match=r"--spec: .* cannot be read \(.*Is a directory"):
        read_spec(SlowSpec, tmp_path)


def test_a_wrong_spec_ends_a_stage_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"execution": {"gpus_per_node": 0}}))
    command = [sys.executable, "-m", "iris_core.publish", "--spec", str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert done.stderr.count("\n") == 1


def test_how_a_stage_runs_is_typed_and_stays_out_of_its_key() -> None:
    spec = SlowSpec.model_validate_json('{"action": "leave", "execution": {"gpus_per_node": 2, "patience": 3}}')
    assert (spec.execution.gpus_per_node, spec.execution.patience) == (2, 3.0)
    assert spec.key() == SlowSpec(action="leave").key()
