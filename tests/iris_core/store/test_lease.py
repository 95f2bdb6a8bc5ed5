"""Leases on a real S3 server: one holder at a time, also when one stalls, dies or loses a reply."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from iris_core.common.errors import StageFailed
from iris_core.store import lease as leases
from iris_core.store.lease import Lease
from iris_core.store.remote import Conflict, Remote
from tests.lossy_proxy import lossy_proxy
from tests.s3 import CREDENTIALS, new_bucket, s3_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as address:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        patch.setattr(leases, "SECONDS", 2.0)
        patch.setattr(leases, "POLL_S", 0.1)
        yield address


@pytest.fixture
def remote(endpoint: str) -> Remote:
    return Remote(new_bucket(endpoint))


def test_writes_depend_on_what_is_there(remote: Remote) -> None:
    tag = remote.write("a", b"1", new=True)
    for condition in ({"new": True}, {"tag": '"0"'}):
        with pytest.raises(Conflict):
            remote.write("a", b"2", **condition)
    remote.write("a", b"3", tag=tag)
    found = remote.read("a")
    assert found
    assert found.content == b"3"
    assert found.age < 60
    assert remote.read("b") is None
    with pytest.raises(Conflict):
        remote.write("b", b"4", tag=tag)


def test_the_second_waits_for_the_first(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SECONDS", 8.0)  # a busy machine may renew it seconds late
    order = []

    def second() -> None:
        with Lease(remote, "lock", "b").held():
            order.append("second")

    with Lease(remote, "lock", "a").held() as first:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.25 * leases.SECONDS)  # it is renewed meanwhile
        first.check()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert remote.read("lock") is None


def test_a_lease_that_is_not_renewed_is_taken_over(remote: Remote) -> None:
    stalled = Lease(remote, "lock", "a")
    stalled._acquire()  # and no thread that renews it
    started = time.monotonic()
    with Lease(remote, "lock", "b").held():
        assert time.monotonic() - started >= leases.SECONDS - 1  # the server's clock counts seconds
        with pytest.raises(StageFailed, match="was taken over by another run"):
            stalled.check()


def test_a_dead_process_of_the_same_owner_is_not_waited_for(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SECONDS", 10_000.0)
    Lease(remote, "lock", "a")._acquire()
    with Lease(remote, "lock", "a").held() as second:
        second.check()


def test_a_lost_reply_to_a_renewal_costs_no_lease(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = new_bucket(endpoint)
    with lossy_proxy(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.uri)
        held = Lease(Remote(uri), "lock", "a")
        held._acquire()
        losses = iter([True, True])
        proxy.loses = lambda request: request.method == "PUT" and next(losses, False)
        held._renew()
        assert next(losses, None) is None
        assert not held.lost
        held._renew()
        held.check()
