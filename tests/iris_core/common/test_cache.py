"""The cache folder: where it is, whatever the variable says."""

from pathlib import Path

import pytest

from iris_core.common.cache import cache_folder

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_it_lies_below_home(monkeypatch, tmp_path, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IRIS_CACHE", raising=False)
    if value is not None:
        monkeypatch.setenv("IRIS_CACHE", value)
    assert cache_folder() == tmp_path / ".cache" / "iris"


def test_the_path_is_absolute_and_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRIS_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("IRIS_CACHE", "here")
    assert cache_folder() == Path.cwd() / "here"
