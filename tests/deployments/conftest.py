"""The services that the tests of this folder share; tests of `test_services` run last and end them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments import pool, services
from deployments.running import Services
from deployments.services import CHECKOUT
from iris_core.common.ports import free_port


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Services with their own ports and store, in a checkout by another name, so that `down` finds no others."""
    folder = tmp_path_factory.mktemp("services")
    (folder / "checkout").symlink_to(CHECKOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRIS_CACHE", str(folder / "cache"))
        patch.setenv("HOME", str(folder))
        patch.setattr(services, "CHECKOUT", folder / "checkout")
        ports = free_port(), free_port()
        try:
            with ThreadPoolExecutor(2) as both:  # started twice at once: only one set of services runs
                found = both.map(lambda store: services.up(store, *ports), [folder / "store"] * 2)
                first, second = found
            assert first == second
            assert pool.ready(first.api)
            yield first
        finally:
            services.down()
