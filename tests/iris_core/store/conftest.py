"""A real S3 server, and machines, which are cache folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iris_core.store import Artifact
from tests.s3 import CREDENTIALS, new_bucket, s3_server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as address:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture
def uri(endpoint: str) -> str:
    return new_bucket(endpoint)


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process one of the machine with the given name."""
    return lambda machine: monkeypatch.setenv("IRIS_CACHE", str(tmp_path / machine))


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    (tmp_path / "source").write_text("seed")
    return Artifact.of(tmp_path / "source")
