"""A campaign: one loop without faults, then loops with faults, each resumed until complete and compared with it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.faults import Fault, plan
from tests.faults.loop import SETUPS, Echo, Loop, Setup, make_inputs
from tests.faults.outcome import Tree, differences, outcome

FAULTS_A_LOOP = 10
LOOK_EVERY_S = 0.1
HANGS_S = 1200.0  # no start takes longer, on a busy machine, too
GONE_S = 300.0  # until nothing is left of a complete loop
TRIES = 3  # of a loop that fails by itself


@dataclass
class Result:
    """The result of a loop: its faults and starts, and every difference from the loop without faults."""

    setup: Setup
    faults: int = 0
    starts: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """The loop without faults: its outcome, and how long it took at each place, in seconds."""

    outcome: Tree
    seconds: dict[str, float]


class Campaign:
    """Loops in `folder`, with faults by `seed`.

    Args:
        folder: holds everything; the inputs are made there.
        seed: of all faults.
        echo: called with each message.
        setups: of the first loop, which is that without faults, too, the second, …; again from the first.
    """

    def __init__(self, folder: Path, seed: int, echo: Echo, setups: Sequence[Setup] = SETUPS):
        self.folder, self.seed, self.echo, self.setups = folder, seed, echo, setups
        self.inputs = folder / "inputs"
        self.inputs.mkdir(parents=True)
        make_inputs(self.inputs)

    def reference(self) -> Reference:
        """Runs the loop without faults."""
        with Loop(self.folder / "undisturbed", self.inputs, self.setups[0], self.echo) as loop:
            loop.start()
            seconds = watch(loop)
            if loop.parent.returncode:
                raise RuntimeError(f"the loop fails without faults:\n{loop.last_lines(15)}")
        return Reference(outcome(loop.store, loop.setup.stages), seconds)

    def disturbed(self, number: int, count: int, reference: Reference, until: float = float("inf")) -> Result:
        """Runs loop `number` with `count` faults; none begins after `until`."""
        setup, begun = self.setups[number % len(self.setups)], time.monotonic()
        faults = plan(self.seed, number, setup, count)

        def echo(line: str) -> None:
            self.echo(f"loop {number}: {line}")

        echo(f"{setup.name}, {count} faults")
        with Loop(self.folder / f"loop-{number}", self.inputs, setup, echo) as loop:
            result = Result(setup)
            seconds = reference.seconds | {"start": setup.start_s}
            complete = Resumed(loop, faults, seconds, result).run(until)
            result.problems += leftovers(loop)
        if complete:
            result.problems += differences(outcome(loop.store, setup.stages), reference.outcome)
        result.problems += tracebacks(loop.log)
        result.starts, result.seconds = loop.starts, time.monotonic() - begun
        return result


def watch(loop: Loop) -> dict[str, float]:
    """How long the loop takes at each place until it ends, in seconds."""
    seconds = dict.fromkeys(loop.setup.places, 0.0)
    seen = time.monotonic()
    while loop.parent.poll() is None:
        time.sleep(LOOK_EVERY_S)
        place, now = loop.place(), time.monotonic()
        seconds[place] += now - seen
        seen = now
    return seconds


class Resumed:
    """A loop that is started again until it is complete, while faults strike.

    Args:
        loop: the loop.
        faults: in the order of its stages.
        seconds: how long each place takes without faults.
        result: is filled in.
    """

    def __init__(self, loop: Loop, faults: Sequence[Fault], seconds: dict[str, float], result: Result):
        self.loop, self.waiting, self.seconds, self.result = loop, list(faults), seconds, result
        self.failures = 0
        self._start()

    def run(self, until: float) -> bool:
        """Runs it; no fault strikes after `until`. Returns whether it became complete."""
        while (code := self.loop.parent.poll()) != 0:
            hangs = code is None and time.monotonic() - self.loop.since > HANGS_S
            if (code is not None or hangs) and not self._again(code):
                return False
            if self.waiting and time.monotonic() < until:
                self._strike(self.waiting[0])
            time.sleep(LOOK_EVERY_S)
        return True

    def _start(self) -> None:
        self.struck = False
        self.reached: float | None = None  # when it reached the place of the next fault
        self.loop.start()

    def _again(self, code: int | None) -> bool:
        """Starts the command again, unless it has failed by itself too often."""
        self.loop.echo(f"ended with {code}: {self.loop.last_lines(1)}")
        if code is None:
            self.loop.kill_all()
        if not self.struck:
            self.failures += 1
            self.result.problems.append(f"fails by itself ({code}): {self.loop.last_lines(15)}")
        if self.failures < TRIES:
            self._start()
        return self.failures < TRIES

    def _strike(self, fault: Fault) -> None:
        """Lets the fault strike if it is time and its target exists."""
        if self.reached is None and self._is_at(fault.place):
            self.reached = time.monotonic()
        wait = 0.0 if self._is_past(fault.place) else fault.share * self.seconds[fault.place]
        if self.reached is None or time.monotonic() < self.reached + wait:
            return
        at = f"{self.loop.place()}, {time.monotonic() - self.loop.since:.1f} s after start {self.loop.starts}"
        hit = None
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended just now
            hit = fault.strike(self.loop)
        if hit is not None:
            self.loop.echo(f"{fault.kind} ({hit}) in {at}")
            self.waiting.pop(0)
            self.result.faults += 1
            self.struck, self.reached = True, None

    def _is_at(self, place: str) -> bool:
        """Whether the loop works on the stage at `place`, or on a later one."""
        now = self.loop.place() == place and self._works(place)
        return now or place == "start" or self._is_past(place)

    def _is_past(self, place: str) -> bool:
        """Whether it was too fast for a fault there: it took less time than without faults, on a less busy machine."""
        places = self.loop.setup.places
        return place != "start" and places.index(self.loop.place()) > places.index(place)

    def _works(self, place: str) -> bool:
        return place == "end" or bool(self.loop.with_role("stage"))


def leftovers(loop: Loop) -> list[str]:
    """The processes that do not end after the loop is complete."""
    until = time.monotonic() + GONE_S
    while (left := loop.processes()) and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
    return [f"left alive: {process}" for process in left]


def tracebacks(log: Path) -> list[str]:
    """The errors that the command printed a traceback of, but not Ctrl-C while Python imports modules."""
    text = log.read_text(errors="replace")
    found = re.findall(r"^Traceback.*?\n(?=\w)([^\n]*)", text, re.DOTALL | re.MULTILINE)
    return [f"traceback: {error}" for error in found if not error.startswith("KeyboardInterrupt")]
