"""What runs in a verifier's process: cases in as lines of JSON, a verdict out for each, in their order.

    python -m iris_core.verification.worker REQUEST

`iris_core.verification.process` starts it and ends it. Before anything else it limits itself: its memory, the
processor's time for each case, no core files, and it ends with its parent. For the kind `command` it then becomes the
user's program, which reads and writes the same lines.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import TextIO

from iris_core.common.strict import Strict
from iris_core.config import VerificationPart
from iris_core.execution.supervision import end_with_parent
from iris_core.verification.kinds import open_judge
from iris_core.verification.patterns import extract
from iris_core.verification.verdicts import MEMORY, NO_REFERENCE, Case, Judge, Verdict, short

READY = "ready"  # the first line
GB = 10**9  # bytes


class Request(Strict):
    """What a process is started with.

    Attributes:
        settings: the verifier's.
        answer_pattern: `data.answer_pattern`.
        parent: process id of the parent.
    """

    settings: VerificationPart
    answer_pattern: str | None
    parent: int


def main() -> None:
    """Runs the verifier that the first argument asks for, until its input ends."""
    request = Request.model_validate_json(sys.argv[1])
    settings = request.settings
    end_with_parent(request.parent)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, int(settings.memory_gb * GB))
    if settings.command is not None:
        os.write(sys.stdout.fileno(), f"{READY}\n".encode())  # what follows is the program's time
        os.execvp(settings.command[0], settings.command)
    serve(request, sys.stdin, sys.stdout)


def serve(request: Request, lines: Iterable[str], out: TextIO) -> None:
    """Writes that it is ready, then a verdict for each line."""
    settings = request.settings
    judge = open_judge(settings)
    print(READY, file=out, flush=True)
    for line in lines:
        used = sum(os.times()[:2])
        _limit(resource.RLIMIT_CPU, math.ceil(used + settings.timeout) + 1)
        verdict = decide(judge, line, request.answer_pattern, needs_reference=settings.needs_reference)
        print(verdict.line(), file=out, flush=True)


def decide(judge: Judge, line: str, answer_pattern: str | None, *, needs_reference: bool) -> Verdict:
    """The verdict on the case in `line`; undecided where it cannot be judged.

    Args:
        judge: of the kind.
        line: a case as JSON.
        answer_pattern: what it captures is judged in place of the response, and in place of the reference where it is
            found there.
        needs_reference: whether there is nothing to judge without one.
    """
    try:
        case = Case(**json.loads(line))
        if needs_reference and case.reference is None:
            return Verdict("undecided", NO_REFERENCE)
        if answer_pattern is not None:
            answer = extract(answer_pattern, case.response)
            if answer is None:
                return Verdict("wrong", "no answer")
            wanted = extract(answer_pattern, case.reference or "")
            case = replace(case, response=answer, reference=case.reference if wanted is None else wanted)
        verdict = judge(case)
        return replace(verdict, reason=short(verdict.reason))
    except MemoryError:
        return Verdict("undecided", MEMORY)
    except RecursionError:
        return Verdict("undecided", "nested too deeply")
    except Exception as error:
        return Verdict("undecided", short(f"{type(error).__name__}: {error}"))


def _limit(kind: int, soft: int) -> None:
    """Sets a limit of this process; the hard one stays, as an unprivileged process could not raise it again."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
