"""What `iris plan` computes beside what the stage `train` takes on this machine's CPUs, by the peak of each process.

    python -m benchmarks.memory --ranks 2 --method full --sharding full

The stage runs as the launcher runs it, with torchrun for several ranks. From the peak of rank 0 goes what a process has
after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa

from iris_core.common.parquet import write_parquet
from iris_core.config import Experiment, parse_experiment
from iris_core.data.pairs import Pair, write_pairs
from iris_core.demo.model import default_path
from iris_core.execution.launch import CPU_SETTINGS
from iris_core.generation.responses import SCHEMA
from iris_core.modeling.sizes import recipe_sizes
from iris_core.pipeline.plan import LoopState, Prepared, train_spec
from iris_core.store import Artifact, Policy
from iris_core.training.memory import Devices, sharding_of, training_memory

IMPORTS = "import resource, iris_core.train; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
STEPS = 2  # the second one has the optimiser's states
HELDOUT = 2
PAIR = 100  # tokens of a prompt and of each response


def main() -> None:
    """Runs the stage once and prints one row of the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description="Compare the plan with this machine.")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--sharding", choices=("none", "full"), default="none")
    parser.add_argument("--optimizer", choices=("rmsprop", "adamw"), default="adamw")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--tokens", type=int, default=300)
    asked = parser.parse_args()
    experiment = _experiment(asked)
    with tempfile.TemporaryDirectory() as folder:
        peak = _measure(experiment, asked.ranks, asked.dtype, Path(folder))
    planned = _planned(experiment, asked.ranks, asked.dtype)
    settings = [str(value) for value in vars(asked).values()]
    cells = [*settings, f"{peak / 1e9:.2f} GB", f"{planned / 1e9:.2f} GB", f"{planned / peak - 1:+.0%}"]
    print(f"| {' | '.join(cells)} |")


def _experiment(asked: argparse.Namespace) -> Experiment:
    training = {
        "method": asked.method,
        "sharding": asked.sharding,
        "optimizer": asked.optimizer,
        "gradient_checkpointing": asked.checkpointing,
        "tokens_per_batch": asked.tokens,
        "epochs": 1,
        "batch_size": 2 * asked.tokens // (3 * PAIR) * asked.ranks,
    }
    return parse_experiment(
        {
            "name": "memory",
            "model": {"path": str(default_path()), "dtype": asked.dtype},
            "data": {"path": "none", "max_prompt_tokens": PAIR, "max_response_tokens": PAIR},
            "generation": {"max_new_tokens": PAIR},
            "training": training,
        }
    )


def _planned(experiment: Experiment, ranks: int, dtype: str) -> float:
    sizes, devices = recipe_sizes(experiment), Devices(1, ranks, None)
    sharing = devices.sharing(sharding_of(sizes, experiment.training, dtype, devices))
    return training_memory(sizes, experiment.training, dtype, sharing, on_cpu=True).on_cpu


def _measure(experiment: Experiment, ranks: int, dtype: str, folder: Path) -> float:
    """Bytes of rank 0 above its imports."""
    spec = folder / "spec.json"
    spec.write_text(_spec(experiment, dtype, folder))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "iris_core.train", "--spec", str(spec), "--out", str(folder / "out")]
    environment = {**CPU_SETTINGS, **os.environ}
    subprocess.run(command, env=environment, check=True)
    imports = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, check=True, capture_output=True)
    rows = [json.loads(line) for line in (folder / "out" / "history.jsonl").read_text().splitlines()]
    return 1e9 * max(row["memory_gb"] for row in rows) - 1024 * float(imports.stdout)


def _spec(experiment: Experiment, dtype: str, folder: Path) -> str:
    """Of training on made-up pairs, all of one length."""
    count = STEPS * experiment.training.batch_size
    pairs = [_pair(number, "train" if number < count else "heldout") for number in range(count + HELDOUT)]
    write_pairs(pairs, folder / "pairs.parquet")
    rows = [
        {
            "prompt_id": pair.prompt_id,
            "split": pair.split,
            "response": "no",
            "token_ids": [token + 1 for token in pair.response_ids],
            "finish_reason": "stop",
        }
        for pair in pairs
    ]
    responses = folder / "responses"
    responses.mkdir()
    write_parquet(responses / "shard-00000.parquet", pa.Table.from_pylist(rows, SCHEMA))
    prepared = Prepared(
        initial=Policy(model=Artifact.of(Path(experiment.model.path))),
        pairs=Artifact.of(folder / "pairs.parquet"),
        dtype=dtype,
        stop_token_ids=[2],
        packing="packed",
    )
    generated = SimpleNamespace(artifact=lambda name: Artifact.of(responses))
    state = LoopState(iteration=0, policy=prepared.initial, order=2.0)
    return train_spec(experiment, prepared, state, generated).model_dump_json()  # type: ignore[arg-type]


def _pair(number: int, split: str) -> Pair:
    """Random tokens, the same for the same number."""
    tokens = [(number * 7919 + position * 104729) % 40000 + 100 for position in range(2 * PAIR)]
    return Pair(
        prompt_id=str(number),
        prompt=str(number),
        response="yes",
        split=split,
        prompt_ids=tokens[:PAIR],
        response_ids=tokens[PAIR:],
    )


if __name__ == "__main__":
    main()
