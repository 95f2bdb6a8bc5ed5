"""A mirror of the benchmarks' data sets, for machines without a network.

A data set has a folder named as on the hub, with a folder for each config, a file for each split, and a README.md from
which `datasets` reads the configs:

    DIR/openai/gsm8k/README.md
    DIR/openai/gsm8k/main/test.parquet
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from iris_core.common.errors import EvaluationError, ServiceError
from iris_core.evaluation.benchmarks import NLTK_FOLDER, DataSet, data_sets

Rows = list[dict[str, Any]]
SUFFIXES = (".parquet", ".jsonl")


def mirror(folder: Path, names: list[str]) -> None:
    """Downloads the data sets of the benchmarks `names` into `folder`; those that it holds already are kept.

    Raises:
        ServiceError: the hub cannot be reached.
        EvaluationError: a data set is missing on the hub, or gated.
    """
    wanted = [item for item in data_sets(names) if not in_mirror(folder, item)]
    for number, item in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] {item.path} {item.config or ''}", flush=True)
        _write_parquet(folder / item.path / (item.config or "default"), item, _download(item))
    for path in {item.path for item in data_sets(names)}:
        write_card(folder / path)
    if "ifeval" in names:
        _download_punkt(folder / NLTK_FOLDER)


def in_mirror(folder: Path, item: DataSet) -> bool:
    """Whether the mirror `folder` holds every split of `item` that the benchmarks read."""
    home = folder / item.path / (item.config or "default")
    return all(any((home / f"{split}{suffix}").is_file() for suffix in SUFFIXES) for split in item.splits)


def write_rows(home: Path, splits: dict[str, Rows]) -> None:
    """Writes one config of a data set into the folder `home` as JSON Lines; call `write_card` after the last config."""
    home.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (home / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_card(home: Path) -> None:
    """Writes the README.md of the data set in `home`, from the files in it."""
    configs = []
    for config in sorted(path for path in home.iterdir() if path.is_dir()):
        files = sorted(path for path in config.iterdir() if path.suffix in SUFFIXES)
        data_files = [{"split": path.stem, "path": f"{config.name}/{path.name}"} for path in files]
        configs.append({"config_name": config.name, "data_files": data_files})
    card = yaml.safe_dump({"configs": configs}, sort_keys=False)
    (home / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


def _write_parquet(home: Path, item: DataSet, splits: dict[str, Any]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for split in item.splits:
        temporary = home / f".{split}.parquet"
        splits[split].to_parquet(temporary)
        temporary.replace(home / f"{split}.parquet")


def _download(item: DataSet) -> dict[str, Any]:
    import datasets

    try:
        return {split: datasets.load_dataset(item.path, item.config, split=split) for split in item.splits}
    except datasets.exceptions.DatasetNotFoundError as error:
        raise EvaluationError(
            f"{item.path} is missing on the hub, or gated: open https://huggingface.co/datasets/{item.path}, "
            "accept its terms, log in with `hf auth login`, and run this again"
        ) from error
    except (ConnectionError, OSError) as error:
        raise ServiceError(f"the Hugging Face hub cannot be reached for {item.path}: run this where it can") from error


def _download_punkt(folder: Path) -> None:
    import nltk

    if not nltk.download("punkt_tab", download_dir=str(folder), quiet=True):
        raise ServiceError("nltk's punkt_tab cannot be downloaded, IFEval needs it: run this where there is a network")
