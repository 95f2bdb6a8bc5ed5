"""Training on several ranks takes the steps of one process, whatever the ranks share, and resumes on any number."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from subprocess import CalledProcessError

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from iris_core.common.errors import ConfigError
from iris_core.config import ObjectivePart
from iris_core.execution.supervision import lives
from iris_core.store.folders import WORK
from iris_core.store.units import NEW
from iris_core.training.checkpoints import checkpoints
from iris_core.training.policy import sharding_of
from tests.iris_core.training.on_ranks import Job, run, torchrun
from tests.iris_core.training.tiny_specs import specs
from tests.processes import PATIENCE_S, below, environment, wait_for

pytestmark = pytest.mark.integration

FULL = {"method": "full", "learning_rate": 1e-3, "sharding": "full"}
LORA = {"method": "lora", "learning_rate": 1e-3, "sharding": "full"}
CASES: dict[str, dict[str, object]] = {
    "full": FULL,
    "untied": {**FULL, "untied": True, "optimizer": "adamw", "max_grad_norm": 0.1},
    "few rows": {**FULL, "tokens_per_batch": 4096, "normalizer": "anchored", "gradient_checkpointing": True},
    "lora": LORA,
    "lora on bfloat16": {**LORA, "dtype": "bfloat16", "gradient_checkpointing": True},
    "samples": {**FULL, "objective": ObjectivePart(beta=0.5)},
}
ROUNDED = {**FULL, "untied": True, "dtype": "bfloat16"}
COMPARED = ("loss", "reward/annotated", "logprob/annotated", "grad_norm", "ess/annotated", "ess/synthetic")
OF_ONE_SAMPLE, OF_SAMPLES = ("reward/margin", "logprob/synthetic"), ("reward/right", "reward/wrong")
STOP = 5


@pytest.fixture(scope="module")
def spec_of(tiny_model, pairs_file, tmp_path_factory):
    return specs(tmp_path_factory.mktemp("inputs"), tiny_model, pairs_file)


@pytest.fixture(scope="module")
def runs(spec_of, tmp_path_factory):
    """The folder of all trainings: <ranks>/<case>, where "lora from 2" was stopped on two ranks and copied."""
    root = tmp_path_factory.mktemp("runs")
    cases = {name: spec_of(**training) for name, training in CASES.items()}
    cases["rounded"] = spec_of(**ROUNDED)
    methods = ("full", "lora")

    def do(ranks: int, names: Iterable[str], stopped: Iterable[str] = ()) -> None:
        jobs = [Job(cases[name.partition(" from")[0]], root / f"{ranks}/{name}") for name in names]
        stops = [Job(cases[name], root / f"{ranks}/stopped {name}", STOP, overlapping=True) for name in stopped]
        run([*jobs, *stops], ranks, root / "jobs.json")

    def move(name: str, source: int, target: int) -> None:
        shutil.copytree(root / f"{source}/stopped {name}", root / f"{target}/{name} from {source}")

    do(1, cases, stopped=methods)
    move("full", 1, 2), move("lora", 1, 2)
    cases["none"] = spec_of(**{**FULL, "sharding": "none"})
    cases["separate"] = spec_of(**{**FULL, "sharding": "none"}, packing="separate")
    do(2, [*cases, "full from 1", "lora from 1"], stopped=methods)
    move("full", 2, 1), move("lora", 2, 1), move("full", 2, 3)
    do(3, ["full", "untied", "lora", "rounded", "full from 2"], stopped=["full"])
    move("full", 3, 1)
    do(1, ["full from 2", "lora from 2", "full from 3"])
    return root


def history(folder: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    others = OF_SAMPLES if "verified/up" in rows[0] else OF_ONE_SAMPLE
    return [[row[name] for name in (*COMPARED, *others)] for row in rows]


def assert_equal_steps(found: Path, expected: Path, relative: float = 1e-5) -> None:
    one, other = history(found), history(expected)
    assert len(one) == len(other) == 6
    for step, wanted in zip(one, other, strict=True):
        assert step == pytest.approx(wanted, rel=relative, abs=relative)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_take_the_steps_of_one(runs, name):
    assert_equal_steps(runs / "2" / name, runs / "1" / name)


@pytest.mark.parametrize("name", ["full", "untied", "lora"])
def test_three_ranks_take_the_steps_of_one(runs, name):
    assert_equal_steps(runs / "3" / name, runs / "1" / name)


@pytest.mark.parametrize("name", ["none", "separate"])
def test_ranks_with_a_whole_model_each_take_the_same_steps(runs, name):
    assert_equal_steps(runs / "2" / name, runs / "1" / "full")


def test_machines_can_have_copies_of_what_their_ranks_share(runs, spec_of, tmp_path):
    """Two machines of two ranks, which torchrun alone knows of."""
    spec = spec_of(**{**FULL, "sharding": "hybrid"})
    run([Job(spec, tmp_path / "hybrid")], 2, tmp_path / "jobs.json", machines=2)
    assert_equal_steps(tmp_path / "hybrid", runs / "1" / "full")


def start(monkeypatch, ranks, machines=1):
    """This process is one of `ranks` on each of `machines`."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks * machines))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))


def test_separate_rows_are_not_sharded(spec_of, monkeypatch):
    start(monkeypatch, ranks=2)
    with pytest.raises(ConfigError, match="training.sharding: full needs packed rows"):
        sharding_of(spec_of(**FULL, packing="separate"))
    assert sharding_of(spec_of(method="full", packing="separate")) == "none"


def test_ranks_on_cpus_share_nothing_unless_asked(spec_of, monkeypatch):
    assert sharding_of(spec_of(**FULL)) == "none"  # one rank
    start(monkeypatch, ranks=2)
    assert sharding_of(spec_of(method="full")) == "none"
    assert sharding_of(spec_of(method="full", sharding="hybrid")) == "full"  # on one machine


def test_machines_are_those_of_the_ranks_and_not_of_the_recipe(spec_of, monkeypatch):
    start(monkeypatch, ranks=2, machines=2)
    spec = spec_of(method="full", sharding="hybrid")
    assert spec.execution.nodes == 1
    assert sharding_of(spec) == "hybrid"


def test_a_rank_that_is_killed_while_it_saves_leaves_the_older_checkpoint(runs, spec_of, tmp_path):
    job = Job(spec_of(**FULL), tmp_path / "train", killed_at=4)
    with pytest.raises(CalledProcessError):
        run([job], 2, tmp_path / "jobs.json")
    assert [path.name for path in checkpoints(tmp_path / "train" / WORK)] == ["checkpoint-2"]
    assert (tmp_path / "train" / NEW / "checkpoint-4" / "optimizer-00001.safetensors").exists()
    run([job._replace(killed_at=None)], 1, tmp_path / "jobs.json")
    assert_equal_steps(tmp_path / "train", runs / "1" / "full")
    assert checkpoints(tmp_path / "train" / WORK)[0].name == "checkpoint-4"


def test_nothing_outlives_a_killed_rank_or_agent_and_the_stage_resumes(spec_of, tmp_path):
    """By the stage's own command: rank 1 is killed, then torchrun's agent, then one process completes the stage."""
    spec, out = spec_of(**{**FULL, "epochs": 24, "learning_rate": 1e-5}), tmp_path / "train"
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = ["-m", "iris_core.train", "--spec", str(tmp_path / "spec.json"), "--out", str(out)]
    found = []
    for steps, victim in ((5, "rank"), (11, "agent")):
        with subprocess.Popen([*torchrun(2), *command]) as agent:
            wait_for_steps(out / WORK / "history.jsonl", steps, agent)
            ranks = below(agent.pid)
            killed = psutil.Process(agent.pid) if victim == "agent" else rank_1(ranks)
            killed.kill()
            assert agent.wait(timeout=PATIENCE_S) != 0
        wait_for_end(ranks)
        found.append(history(out / WORK))
    subprocess.run([sys.executable, *command], check=True)
    assert (out / "manifest.json").exists()
    assert len(history(out)) == 72
    assert history(out)[:4] == found[0][:4]  # what the first run's checkpoint had
    assert history(out)[:10] == found[1][:10]


def wait_for_steps(lines: Path, steps: int, agent: subprocess.Popen) -> None:
    while not (lines.exists() and len(lines.read_text().splitlines()) >= steps):
        assert agent.poll() is None
        time.sleep(0.05)


def wait_for_end(processes: list[psutil.Process]) -> None:
    wait_for(lambda: not any(map(lives, processes)))


def rank_1(processes: list[psutil.Process]) -> psutil.Process:
    return next(each for each in processes if environment(each).get("RANK") == "1")


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        (1, "full from 2"),
        (1, "lora from 2"),
        (1, "full from 3"),
        (2, "full from 1"),
        (2, "lora from 1"),
        (3, "full from 2"),
    ],
)
def test_a_stopped_training_goes_on_on_other_ranks(runs, ranks, name):
    assert_equal_steps(runs / str(ranks) / name, runs / "1" / name.partition(" from")[0])


@pytest.mark.parametrize("name", ["full", "untied", "lora"])
def test_the_same_files_are_saved(runs, name):
    output = "adapter" if name == "lora" else "model"
    one, other = (runs / ranks / name / output for ranks in "12")
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in one.iterdir():
        if path.suffix == ".safetensors":
            torch.testing.assert_close(load_file(path), load_file(other / path.name), rtol=1e-5, atol=1e-5)
        else:
            assert path.read_bytes() == (other / path.name).read_bytes()


def test_bfloat16_is_the_same_on_two_and_three_ranks(runs):
    """Sharded layers compute in bfloat16 throughout, autocast only in matmuls: rounding differs from one process."""
    assert_equal_steps(runs / "2/rounded", runs / "3/rounded", 1e-3)
    assert_equal_steps(runs / "2/rounded", runs / "1/rounded", 0.1)
    kinds = [(pq.read_schema(runs / ranks / "rounded/opponent_logprobs.parquet").metadata or {}) for ranks in "12"]
    assert [kind.get(b"iris.numerics") for kind in kinds] == [None, b"sharded"]
