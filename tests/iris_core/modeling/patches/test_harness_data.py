"""Data sets below a mirror are read by their names on the hub, into a cache of our own."""

from pathlib import Path

import datasets
import pytest

from iris_core.evaluation.mirror import write_card, write_rows
from iris_core.modeling.patches.harness_data import data_sets_in

pytestmark = pytest.mark.unit


def test_a_name_of_the_hub_is_a_folder_of_the_mirror(tmp_path: Path) -> None:
    mirror, cache = tmp_path / "mirror", tmp_path / "cache"
    write_rows(mirror / "owner/name/main", {"test": [{"question": "Why?"}]})
    write_card(mirror / "owner/name")
    here, before = Path.cwd(), datasets.config.HF_DATASETS_CACHE
    bars = datasets.are_progress_bars_disabled()
    with data_sets_in(mirror, cache):
        assert datasets.are_progress_bars_disabled()
        found = datasets.load_dataset("owner/name", "main", split="test")
    assert found.to_list() == [{"question": "Why?"}]
    assert [Path(file["filename"]).is_relative_to(cache) for file in found.cache_files] == [True]
    assert Path.cwd() == here
    assert before == datasets.config.HF_DATASETS_CACHE
    assert datasets.are_progress_bars_disabled() == bars


def test_without_a_mirror_the_working_directory_stays(tmp_path: Path) -> None:
    here = Path.cwd()
    with data_sets_in(None, tmp_path):
        assert Path.cwd() == here
        assert tmp_path == datasets.config.HF_DATASETS_CACHE


def test_everything_is_restored_after_an_error(tmp_path: Path) -> None:
    here, before = Path.cwd(), datasets.config.HF_DATASETS_CACHE
    with pytest.raises(ConnectionError), data_sets_in(tmp_path, tmp_path):
        raise ConnectionError
    assert Path.cwd() == here
    assert before == datasets.config.HF_DATASETS_CACHE
