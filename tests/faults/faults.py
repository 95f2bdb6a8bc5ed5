"""The faults: what each does to a loop, where it can strike, and how a seed decides which faults strike when."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from iris_core.pipeline.stages import OF_LOOP
from iris_core.store.folders import MANIFEST
from tests.faults.loop import ALONE, BARE, NAME, SERVED, Loop, Setup

MAX_LOCKED_S = 15.0
WRITES = 30  # requests that write, in one stage `register`
MAX_LOST = 5  # more than MLflow's client tries by itself

Strike = Callable[[Loop, random.Random], str | None]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        strike: strikes a running loop; returns what it hit, or None if there is no target yet.
        stages: where it can strike: names of stages, "start" and "end".
        setups: the setups it can strike in.
    """

    strike: Strike
    stages: tuple[str, ...]
    setups: tuple[Setup, ...] = (BARE, ALONE, SERVED)

    def fits(self, place: str) -> bool:
        """Whether it can strike there."""
        return place.rpartition("/")[2] in self.stages


@dataclass(frozen=True)
class Fault:
    """One fault of a loop.

    Attributes:
        kind: a name in `KINDS`.
        place: where the loop is when it strikes.
        share: how far into that place, as a share of the time it takes without faults.
        seed: of its other random choices.
    """

    kind: str
    place: str
    share: float
    seed: str

    def strike(self, loop: Loop) -> str | None:
        """Strikes; see `Kind.strike`."""
        return KINDS[self.kind].strike(loop, random.Random(self.seed))


def plan(seed: int, number: int, setup: Setup, count: int) -> list[Fault]:
    """The faults of loop `number`, in the order of its stages; equal for an equal seed."""
    draw = random.Random(f"{seed}/{number}")
    faults = [_draw(draw, setup, f"{seed}/{number}/{fault}") for fault in range(count)]
    return sorted(faults, key=lambda fault: (setup.places.index(fault.place), fault.share))


def _draw(draw: random.Random, setup: Setup, seed: str) -> Fault:
    kind = draw.choice([name for name, kind in KINDS.items() if setup in kind.setups])
    place = draw.choice([place for place in setup.places if KINDS[kind].fits(place)])
    return Fault(kind, place, draw.random(), seed)


def _signal(number: signal.Signals, *roles: str) -> Strike:
    """Sends a signal to one process of each role."""

    def strike(loop: Loop, draw: random.Random) -> str | None:
        found = [loop.with_role(role) for role in roles]
        if not all(found):
            return None
        hit = [draw.choice(processes) for processes in found]
        for process in hit:
            process.send_signal(number)
        return ", ".join(str(process.pid) for process in hit)

    return strike


def interrupt(loop: Loop, _draw: random.Random) -> str:
    """Ctrl-C in the terminal, which signals the process group."""
    os.killpg(loop.parent.pid, signal.SIGINT)
    return "its group"


def _lose_power(damage: Callable[[bytearray, random.Random], None]) -> Strike:
    """Kills all processes at once and damages a file of the store."""

    def strike(loop: Loop, draw: random.Random) -> str:
        loop.kill_all()
        files = damageable(loop.store)
        if not files:
            return "nothing is stored yet"
        stages = [folder for folder in files if folder.parent.name == "objects"]
        unfinished = [folder for folder in stages if not (folder / MANIFEST).exists()]
        folders = draw.choice([list(files), unfinished or list(files)])
        file = draw.choice(files[draw.choice(folders)])
        content = bytearray(file.read_bytes())
        damage(content, draw)
        file.write_bytes(content)
        return str(file.relative_to(loop.store))

    return strike


def damageable(store: Path) -> dict[Path, list[Path]]:
    """The files of finished and unfinished stages, and the experiment's own, by folder."""
    folders = [*sorted((store / "objects").glob("*")), store / NAME]
    files = {folder: sorted(filter(_counts, folder.rglob("*"))) for folder in folders}
    return {folder: found for folder, found in files.items() if found}


def _counts(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0 and file.suffix != ".log"


def _empty(content: bytearray, _draw: random.Random) -> None:
    content.clear()


def _cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _flip_bit(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def restart_mlflow(loop: Loop, _draw: random.Random) -> str:
    """Kills the MLflow server and starts it again at once."""
    assert loop.mlflow is not None
    loop.mlflow.kill()
    loop.mlflow.start()
    return f"gone for {_seconds_since(loop.mlflow.killed)}"


def restart_prefect(loop: Loop, _draw: random.Random) -> str:
    """Kills the given Prefect server and starts it again at once."""
    assert loop.prefect is not None
    loop.prefect.kill()
    loop.prefect.start()
    return f"gone for {_seconds_since(loop.prefect.killed)}"


def _seconds_since(when: float) -> str:
    return f"{time.monotonic() - when:.1f} s"


def lose_replies(loop: Loop, draw: random.Random) -> str:
    """MLflow does what a request asks, and the reply is lost; replies to repeated requests, too."""
    assert loop.proxy is not None
    after, count = draw.randrange(WRITES), draw.randint(1, MAX_LOST)
    loop.proxy.lose_replies(after, count)
    return f"{count} after {after} others"


def lock_database(loop: Loop, draw: random.Random) -> str | None:
    """Locks MLflow's SQLite database for some seconds, as another program may."""
    file, seconds = loop.store / "mlflow.db", draw.uniform(1, MAX_LOCKED_S)
    if not file.exists():
        return None
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        try:
            database.execute("begin exclusive")
        except sqlite3.OperationalError:  # another program held the lock for too long
            return None
        time.sleep(seconds)
        database.execute("rollback")
    return f"for {seconds:.1f} s"


KILL, TERM = signal.SIGKILL, signal.SIGTERM
ANYWHERE = ("start", *OF_LOOP, "end")
KINDS = {
    "kill the parent": Kind(_signal(KILL, "parent"), ANYWHERE),
    "kill the stage": Kind(_signal(KILL, "stage"), OF_LOOP),
    "kill a rank or worker": Kind(_signal(KILL, "rank"), ("generate", "train")),
    "kill the supervisor": Kind(_signal(KILL, "supervisor"), OF_LOOP),
    "kill parent and stage": Kind(_signal(KILL, "parent", "stage"), OF_LOOP),
    "kill parent and supervisor": Kind(_signal(KILL, "parent", "supervisor"), OF_LOOP),
    "terminate the stage": Kind(_signal(TERM, "stage"), OF_LOOP),
    "terminate the parent": Kind(_signal(TERM, "parent"), ANYWHERE),
    "interrupt": Kind(interrupt, ANYWHERE),
    "lose power, empty": Kind(_lose_power(_empty), ANYWHERE),
    "lose power, cut": Kind(_lose_power(_cut), ANYWHERE),
    "lose power, flip a bit of": Kind(_lose_power(_flip_bit), ANYWHERE),
    "kill its Prefect server": Kind(_signal(KILL, "prefect"), ANYWHERE, (ALONE,)),
    "restart Prefect": Kind(restart_prefect, ANYWHERE, (SERVED,)),
    "restart MLflow": Kind(restart_mlflow, ("start", "register"), (BARE, SERVED)),
    "lose replies of MLflow": Kind(lose_replies, ("register",), (BARE, SERVED)),
    "lock MLflow's database": Kind(lock_database, ("start", "register")),
}
