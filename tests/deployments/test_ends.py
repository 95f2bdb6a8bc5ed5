"""How commands end: exit codes and messages of one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer

from deployments import ends
from iris_core.common.errors import ConfigError, ServiceError
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
WAITING = """
import sys, time
from deployments import ends

ends.end_on_signals(lambda: sys.argv[1] == "unreachable")

@ends.handle_errors
def command():
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.2)  # a signal just before a system call is handled after it: Python waits in short steps
    finally:
        print("reported", flush=True)

try:
    command()
except Exception as error:
    sys.exit(error.exit_code)
"""


def fill_a_disk() -> None:
    with Path("/dev/full").open("w") as file:  # the kernel's own full disk
        file.write("x")


def wrap_a_full_disk() -> None:
    try:
        fill_a_disk()
    except OSError as error:
        raise RuntimeError("could not persist the result") from error


@pytest.mark.parametrize("command", [fill_a_disk, wrap_a_full_disk])
def test_a_full_disk_is_one_line_in_whatever_it_is_wrapped(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(command)
    with pytest.raises(typer.Exit) as end:
        ends.handle_errors(command)()
    assert end.value.exit_code == 2
    said = capsys.readouterr().err
    assert "is full: free some space, then run again to resume" in said
    assert said.count("\n") == 1


def test_causes_of_errors_may_form_a_cycle() -> None:
    first, second = ValueError("one"), ValueError("two")
    first.__cause__, second.__cause__ = second, first
    assert ends.full_disk(first) is None


def test_other_errors_of_the_program_keep_their_traceback() -> None:
    def command() -> None:
        raise FileNotFoundError(2, "no such file", "x")

    with pytest.raises(FileNotFoundError):
        ends.handle_errors(command)()


def fail_to_reach_prefect() -> None:
    try:
        raise httpx.ConnectError("refused\nat length")
    except httpx.HTTPError as cause:
        raise RuntimeError("Failed to reach API") from cause


def test_a_server_that_is_gone_is_one_line_in_whatever_it_is_wrapped(tmp_path: Path) -> None:
    with (
        pytest.raises(ServiceError) as error,
        ends.explained(tmp_path, lambda: "http://here/api"),
    ):
        fail_to_reach_prefect()
    assert str(error.value) == (
        "Prefect: http://here/api no longer answers (refused): start it again, then run again to resume"
    )


def test_an_error_names_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ConfigError("a [setting] is wrong")

    with pytest.raises(typer.Exit):
        ends.handle_errors(command)()
    assert capsys.readouterr().err == "error: a [setting] is wrong\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("prefect", ["answers", "unreachable"])
def test_signals_end_the_run_at_once_where_prefect_is_unreachable(number: signal.Signals, prefect: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, prefect],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert out == ("reported\n" if prefect == "answers" else "")
    assert "Traceback" not in err
