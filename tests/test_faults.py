"""A short campaign of `python -m tests.faults`, and the parts of it that could hide a fault."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from tests.faults.campaign import Campaign, tracebacks
from tests.faults.faults import KINDS, plan
from tests.faults.loop import ALONE, BARE, SERVED
from tests.faults.outcome import differences
from tests.faults.servers import Proxy

SEED, FAULTS = 2024, 3  # a file cut in generation, a rank killed in training, replies to registration lost


@pytest.mark.integration
def test_a_loop_with_a_few_faults_leaves_what_one_without_leaves(tmp_path: Path) -> None:
    lines: list[str] = []
    campaign = Campaign(tmp_path / "campaign", SEED, lines.append, [replace(BARE, iterations=1)])
    result = campaign.disturbed(0, FAULTS, campaign.reference())
    assert not result.problems, "\n".join(lines)
    assert result.faults == FAULTS


@pytest.mark.unit
def test_a_seed_decides_which_fault_strikes_when() -> None:
    assert plan(3, 1, SERVED, 10) == plan(3, 1, SERVED, 10)
    assert plan(3, 1, SERVED, 10) != plan(3, 2, SERVED, 10)
    places = [fault.place for fault in plan(3, 1, SERVED, 10)]
    assert places == sorted(places, key=SERVED.places.index)


@pytest.mark.unit
def test_every_kind_of_fault_strikes_somewhere() -> None:
    drawn = {fault.kind for setup in (BARE, ALONE, SERVED) for fault in plan(0, 0, setup, 300)}
    assert drawn == set(KINDS)


@pytest.mark.unit
def test_differences_name_the_place() -> None:
    without_faults = {"runs": {"a": 1, "b": 1}, "status": "FINISHED"}
    assert differences(without_faults, without_faults) == []
    assert differences({"runs": {"a": 2}, "status": "FINISHED"}, without_faults) == [
        "runs: a: 2, without faults 1",
        "runs: b: null, without faults 1",
    ]


@pytest.mark.unit
def test_tracebacks_are_found_but_for_interrupts(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    frames = 'Traceback (most recent call last):\n  File "a.py", line 1\n    import b\n'
    log.write_text(f"error: b\n{frames}KeyboardInterrupt\nok\n{frames}KeyError: 'c'\nerror: d\n")
    assert tracebacks(log) == ["traceback: KeyError: 'c'"]


class Counted(BaseHTTPRequestHandler):
    """Counts what it is asked to do."""

    done: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.done.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def counted() -> Iterator[HTTPServer]:
    Counted.done.clear()
    server = HTTPServer(("127.0.0.1", 0), Counted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.unit
def test_the_proxy_loses_the_reply_to_a_request_that_was_done(counted: HTTPServer) -> None:
    lines: list[str] = []
    proxy = Proxy(f"http://127.0.0.1:{counted.server_address[1]}", lines.append)
    proxy.lose_replies(after=1, count=1)
    assert httpx.post(f"{proxy.uri}/a", content="first").text == "ok"
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{proxy.uri}/b", content="second")
    assert httpx.post(f"{proxy.uri}/c", content="third").text == "ok"
    proxy.end()
    assert Counted.done == ["first", "second", "third"]
    assert lines == ["lost the reply to POST /b"]
