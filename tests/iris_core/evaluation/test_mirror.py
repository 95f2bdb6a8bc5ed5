"""The mirror's layout, from data sets on this machine: `datasets` reads it by the names of the hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from iris_core.common.errors import EvaluationError, ServiceError
from iris_core.evaluation import mirror
from iris_core.evaluation.benchmarks import DataSet

pytestmark = pytest.mark.unit


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """Stands in for the hub (there is none here); returns what was asked of it."""
    asked: list[tuple[str, str | None, str]] = []

    def load(path: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((path, config, split))
        return datasets.Dataset.from_list(
            [{"question": f"{config} {split} {i}", "choices": ["a", "b"]} for i in range(3)]
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_mirrored_data_set_is_read_by_its_name(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.mirror(tmp_path, ["gsm8k", "winogrande"])
    assert hub == [
        ("openai/gsm8k", "main", "test"),
        ("openai/gsm8k", "main", "train"),
        ("allenai/winogrande", "winogrande_xl", "validation"),
        ("allenai/winogrande", "winogrande_xl", "train"),
    ]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    found = datasets.load_dataset("openai/gsm8k", "main", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {"test": 3, "train": 3}
    assert found["test"][0] == {"question": "main test 0", "choices": ["a", "b"]}


def test_what_is_there_is_not_downloaded_again(hub: Any, tmp_path: Path) -> None:
    mirror.mirror(tmp_path, ["gsm8k"])
    (tmp_path / "openai/gsm8k/main/train.parquet").unlink()
    hub.clear()
    mirror.mirror(tmp_path, ["gsm8k"])
    assert [split for _, _, split in hub] == ["test", "train"]
    hub.clear()
    mirror.mirror(tmp_path, ["gsm8k"])
    assert hub == []


def test_a_config_that_the_task_does_not_name_is_the_default_one(tmp_path: Path) -> None:
    item = DataSet("Rowan/hellaswag", None, ("validation", "train"))
    mirror.write_rows(tmp_path / item.path / "default", {"validation": [{"a": 1}]})
    assert not mirror.in_mirror(tmp_path, item)
    mirror.write_rows(tmp_path / item.path / "default", {"train": [{"a": 2}]})
    assert mirror.in_mirror(tmp_path, item)


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("gone"),
            EvaluationError,
            "openai/gsm8k is missing on the hub, or gated.*hf auth login",
        ),
        (ConnectionError("no route"), ServiceError, "hub cannot be reached for openai/gsm8k"),
    ],
)
def test_errors_say_what_to_do(
    raised: Exception,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(error, match=message):
        mirror.mirror(tmp_path, ["gsm8k"])


def test_the_command_refuses_an_unknown_benchmark(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "iris_core.mirror",
        "--out",
        str(tmp_path),
        "--benchmarks",
        "gsm9k",
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert "invalid choice: 'gsm9k'" in found.stderr
