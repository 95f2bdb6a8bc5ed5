"""Only their owner can read credentials; they stay the same, and no other server gets them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from deployments import credentials
from deployments.processes import AUTH_VARIABLE

pytestmark = pytest.mark.unit
API = "http://127.0.0.1:4200/api"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)


def test_the_file_is_private_even_where_it_was_not() -> None:
    credentials.path().parent.mkdir(parents=True, mode=0o755)
    credentials.path().write_text("[profiles")
    credentials.path().chmod(0o644)
    made = credentials.keep(API)
    assert credentials.path().stat().st_mode & 0o777 == 0o600
    assert credentials.path().parent.stat().st_mode & 0o777 == 0o700
    profile = tomllib.loads(credentials.path().read_text())
    assert profile["profiles"][profile["active"]] == {"PREFECT_API_URL": API, AUTH_VARIABLE: made}


def test_they_stay_and_follow_the_server() -> None:
    first = credentials.keep(API)
    assert credentials.keep(API) == first
    other = API.replace("4200", "4201")
    assert credentials.keep(other) == first
    assert credentials.of(other) == first
    assert credentials.make() != first


def test_another_server_gets_its_own_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = credentials.keep(API)
    assert credentials.of("https://prefect.example/api") is None
    monkeypatch.setenv(AUTH_VARIABLE, "me:theirs")
    assert credentials.of("https://prefect.example/api") == "me:theirs"
    assert credentials.of(API) == mine


def test_link_is_made_again_and_a_checkout_that_cannot_be_written_is_left_alone(
    tmp_path: Path,
) -> None:
    made = credentials.keep(API)
    for _ in range(2):
        credentials.link(tmp_path)
    assert made in (tmp_path / ".iris" / "profiles.toml").read_text()
    (tmp_path / "file").touch()
    credentials.link(tmp_path / "file")
