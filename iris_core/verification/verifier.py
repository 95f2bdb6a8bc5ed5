"""A verifier: judges responses in processes with limits (`process`), several at a time.

    with open_verifier(settings, answer_pattern) as verifier:
        verdicts = verifier.verify(cases)

A verdict depends on its case alone, so that the number of processes and their restarts change none.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue
from typing import Self

from iris_core.common.errors import VerificationError
from iris_core.config import VerificationPart
from iris_core.verification.process import NoVerdict, Process
from iris_core.verification.verdicts import Case, Verdict

PROCESSES = 8  # at most
TRUNCATED = "truncated"
FEWEST = 4  # prompts without a verdict on any response that say something of the verifier, not of the responses


class Verifier:
    """Processes that judge responses; a context manager that ends them.

    Args:
        settings: kind, files, limits.
        answer_pattern: `data.answer_pattern`.
    """

    def __init__(self, settings: VerificationPart, answer_pattern: str | None):
        self._settings = settings
        count = min(PROCESSES, os.cpu_count() or 1)
        # threads that live as long as their processes, which the kernel ends with the thread that started them
        self._threads = ThreadPoolExecutor(count, "verifier")
        self._processes = [Process(settings, answer_pattern) for _ in range(count)]
        self._idle: LifoQueue[Process] = LifoQueue()
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()

    def verify(self, cases: list[Case]) -> list[Verdict]:
        """A verdict for each of `cases`, in their order; equal cases are judged once.

        Raises:
            VerificationError: the verifier does not start, or fails at every case, of some at least.
        """
        unique = list(dict.fromkeys(cases))
        found = dict(zip(unique, self._threads.map(self._judge, unique), strict=True))
        failed = [reason for outcome in found.values() if (reason := _failure(outcome))]
        if len(failed) == len(unique) and len({(case.prompt, case.reference) for case in unique}) >= FEWEST:
            raise self._useless(len(failed), failed[0])
        return [_final(case, found[case]) for case in cases]

    def _useless(self, responses: int, reason: str) -> VerificationError:
        settings = self._settings
        if settings.command is None:
            return VerificationError(
                f"verification.kind: {settings.kind} gives no verdict on any of {responses} responses ({reason}): run "
                "again on a machine with less to do, or raise verification.timeout, which is "
                f"{settings.timeout:g} s, or verification.memory_gb, which is {settings.memory_gb:g}"
            )
        return VerificationError(
            f"verification.command: {' '.join(settings.command)!r} gives no verdict on any of {responses} responses "
            f"({reason}): it must write a line of JSON for each line that it reads, without delay"
        )

    def _judge(self, case: Case) -> Verdict | NoVerdict:
        process = self._idle.get()
        try:
            return process.judge(case)
        except NoVerdict as failure:
            return failure
        finally:
            self._idle.put(process)


def open_verifier(settings: VerificationPart, answer_pattern: str | None) -> Verifier:
    """The verifier of an experiment. Its processes start when the first response is judged.

    Args:
        settings: `verification`, of a kind other than none.
        answer_pattern: `data.answer_pattern`; what it captures is judged, but for the kind `command`.
    """
    assert settings.judges
    return Verifier(settings, answer_pattern)


def _failure(outcome: Verdict | NoVerdict) -> str | None:
    """Why the verifier failed at a case; None where it did not."""
    if isinstance(outcome, NoVerdict):
        return str(outcome)
    return outcome.reason if outcome.at_limit else None


def _final(case: Case, outcome: Verdict | NoVerdict) -> Verdict:
    """The verdict to record: nothing is known without one, and a truncated response is never right."""
    if isinstance(outcome, NoVerdict):
        return Verdict("undecided", str(outcome))
    if case.truncated and outcome.verdict == "right":
        return Verdict("undecided", TRUNCATED)
    return outcome
