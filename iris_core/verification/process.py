"""A verifier's process: started when it is needed, killed when a response takes too long, and then started anew."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

from iris_core.common.errors import VerificationError
from iris_core.config import VerificationPart
from iris_core.execution.supervision import how_ended, kill_session
from iris_core.verification.verdicts import MEMORY, TIMEOUT, Case, Verdict, parse_verdict, short
from iris_core.verification.worker import READY, Request

START_S = 120.0  # for imports, on a busy machine
END_S = 2.0  # for a process that has closed its output to end
LONGEST_LINE = 1_000_000  # bytes of a verdict
KEPT_ERRORS = 4000  # bytes of the error output
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME")  # no secrets beside responses


class NoVerdict(Exception):
    """The process gave no verdict on a response. The text says why."""


class Finished(NoVerdict):
    """The process has ended without an error."""


class Process:
    """One process that judges a response at a time.

    Args:
        settings: the verifier's.
        answer_pattern: `data.answer_pattern`.
    """

    def __init__(self, settings: VerificationPart, answer_pattern: str | None):
        self._settings = settings
        request = Request(settings=settings, answer_pattern=answer_pattern, parent=os.getpid())
        self._command = [sys.executable, "-m", "iris_core.verification.worker", request.model_dump_json()]
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, case: Case) -> Verdict:
        """The verdict on `case`.

        Raises:
            NoVerdict: the process took too long, ended, or wrote something else.
            VerificationError: the process does not start.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it ended after its last verdict
        line = ""
        try:
            if self._process is None:
                self._start()
            line = self._exchange(case.line() + "\n", self._settings.timeout)
            verdict = parse_verdict(line)
        except Finished:
            judged = self._judged
            self.close()
            if not judged:
                raise
            return self.judge(case)  # it ended after its last verdict, a moment later
        except NoVerdict:
            self.close()
            raise
        except (ValueError, RecursionError):
            self.close()
            raise NoVerdict(short(f"no verdict in its output: {line}")) from None
        self._judged += 1
        if verdict.reason == MEMORY:
            self.close()  # what is left of it may be in pieces
        return verdict

    def kill(self) -> None:
        """Kills the process, and what it has started in its session; from any thread."""
        if (process := self._process) is not None:
            kill_session(process.pid)

    def close(self) -> None:
        """Kills the process and forgets it; the next case has a new one."""
        self.kill()
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def _start(self) -> None:
        builtin = self._settings.command is None
        known = {name: value for name, value in os.environ.items() if name in PASSED_ON}
        environment = {**known, "PYTHONHASHSEED": "0"} if builtin else {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            self._command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._pipes = [
            pipe.fileno() for pipe in (self._process.stdin, self._process.stdout, self._process.stderr) if pipe
        ]
        for descriptor in self._pipes:
            os.set_blocking(descriptor, False)
        self._errors, self._judged = b"", 0
        self._await_ready()

    def _await_ready(self) -> None:
        """Waits until it can take its first case, or is about to become the user's program.

        Raises:
            VerificationError: it does not start.
        """
        try:
            if self._exchange("", START_S, len(READY) + 1) == READY:
                return
            reason = "it wrote something else than that it is ready"
        except NoVerdict as error:
            reason = str(error)
        self.close()
        raise VerificationError(
            f"verification.kind: the process of the verifier {self._settings.kind} does not start ({reason}): check "
            f"verification.memory_gb, which is {self._settings.memory_gb:g}"
        )

    def _exchange(self, text: str, seconds: float, most: int = LONGEST_LINE) -> str:
        """Writes `text` and reads a line of at most `most` bytes.

        Raises:
            Finished: the process has ended without an error, and without a line.
            NoVerdict: the line takes longer than `seconds`, or the process has ended.
        """
        stdin, stdout, stderr = self._pipes
        left, line, until = text.encode("ascii"), b"", time.monotonic() + seconds
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        if left and any(event & select.POLLIN for _, event in poll.poll(0)):
            raise NoVerdict("output that no response asks for")
        poll.register(stderr, select.POLLIN)
        poll.register(stdin, select.POLLOUT)
        while not line.endswith(b"\n"):
            if not left:
                with suppress(KeyError):
                    poll.unregister(stdin)
            remaining = until - time.monotonic()
            ready = [descriptor for descriptor, _ in poll.poll(max(0, 1000 * remaining))]
            if not ready or remaining < 0:
                raise NoVerdict(TIMEOUT)
            if stderr in ready and not self._read_errors():
                poll.unregister(stderr)
            if stdout in ready:
                read = os.read(stdout, most - len(line))
                if not read:
                    raise self._ended() if not line else NoVerdict(self._how_ended())
                line += read
            elif stdin in ready:
                left = self._write(left)
            if len(line) >= most and not line.endswith(b"\n"):
                raise NoVerdict("a line too long in its output")
        return line.decode(errors="replace").rstrip("\r\n")

    def _write(self, content: bytes) -> bytes:
        """Writes as much of `content` as fits and returns the rest."""
        try:
            return content[os.write(self._pipes[0], content) :]
        except BlockingIOError:
            return content
        except BrokenPipeError:
            raise self._ended() from None

    def _read_errors(self) -> bool:
        """Keeps the end of the error output. Returns whether it is still open."""
        try:
            read = os.read(self._pipes[2], KEPT_ERRORS)
        except BlockingIOError:
            return True
        self._errors = (self._errors + read)[-KEPT_ERRORS:]
        return bool(read)

    def _ended(self) -> NoVerdict:
        """The error for a process that has closed its input or output."""
        how = self._how_ended()
        assert self._process is not None
        return Finished(how) if self._process.returncode == 0 else NoVerdict(how)

    def _how_ended(self) -> str:
        """How the process ended, with the last line of its error output."""
        assert self._process is not None
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "closed its input or output"
        if code == -signal.SIGXCPU:
            return TIMEOUT
        self._read_errors()
        lines = self._errors.decode(errors="replace").strip().splitlines()
        return short(f"{how_ended(code)}: {lines[-1]}" if lines else how_ended(code))
