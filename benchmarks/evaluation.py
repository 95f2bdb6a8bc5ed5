"""The ten benchmarks of the miniature: our stage, with one engine for all, against lm_eval's command for each.

Both are timed from the start of the command to its end, with the same backend, shots, batch size and limit on generated
tokens, on data sets in one warm cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.interleaved import Rounds, RunFailed, alone
from benchmarks.table import Line, Result
from iris_core.pipeline.metrics import EvaluateMetrics
from iris_core.store import require_manifest

NEW_TOKENS = 32
AN_HOUR = 3600.0

Scores = dict[str, float]


def measure(model: Path, repeats: int) -> Result:
    """The line `evaluation`."""
    spec = _spec(model)
    alone(warm, spec=spec)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(repetition) for repetition in range(repeats)]
        rounds = [(ours(spec, place / "ours"), peer(spec, place / "peer")) for place in places]
    speeds = [[AN_HOUR / both[run][0] for both in rounds] for run in (0, 1)]
    title = "evaluation of the ten (miniature)"
    line = Line(title, "evaluations/hour", speeds[0], speeds[1], "≥", 1.5)
    return Result("evaluation", [line], _text(spec, rounds[-1][0][1], rounds[-1][1][1]))


def warm(rounds: Rounds, spec: Any) -> None:
    """Reads the data sets once, into the cache that both runs use."""
    from iris_core.evaluation.harness import load_tasks

    load_tasks(spec.evaluation.benchmarks, spec.data)


def ours(spec: Any, out: Path) -> tuple[float, Scores]:
    """Seconds and scores of the stage `evaluate`."""
    out.mkdir(parents=True)
    request = out.parent / "spec.json"
    request.write_text(spec.model_dump_json())
    command = ["-m", "iris_core.evaluate", "--spec", str(request), "--out", str(out)]
    seconds = _seconds(command, cwd=Path.cwd(), settings={})
    found = EvaluateMetrics.of(require_manifest(out)).benchmarks
    return seconds, {name: found[name].value for name in spec.evaluation.benchmarks}


def peer(spec: Any, out: Path) -> tuple[float, Scores]:
    """Seconds and scores of `lm_eval run`, one benchmark after another."""
    from iris_core.common.cache import cache_folder
    from iris_core.evaluation.benchmarks import NLTK_FOLDER, benchmark

    cache = cache_folder() / "datasets"
    settings = {
        "HF_DATASETS_CACHE": str(cache / spec.data.digest[:16]),
        "NLTK_DATA": str(spec.data.path / NLTK_FOLDER),
    }
    seconds, scores = 0.0, {}
    for name in spec.evaluation.benchmarks:
        item = benchmark(name)
        command = _command(spec, item, out / name)
        seconds += _seconds(command, cwd=spec.data.path, settings=settings)
        (file,) = (out / name).rglob("results_*.json")
        scores[name] = json.loads(file.read_text())["results"][item.task][f"{item.metric},{item.filter}"]
    return seconds, scores


def _command(spec: Any, item: Any, out: Path) -> list[str]:
    """`lm_eval run` on one benchmark; with `-P` Python does not take folders of data for packages."""
    from iris_core.pipeline.specs import EVALUATION_BATCH

    model = f"pretrained={spec.policy.model.path},dtype={spec.dtype}"
    command = [
        "-P",
        "-m",
        "lm_eval",
        "run",
        "--model",
        spec.evaluation.backend,
        "--model_args",
        model,
        "--tasks",
        item.task,
        "--num_fewshot",
        str(item.shots),
        "--batch_size",
        str(EVALUATION_BATCH),
        "--output_path",
        str(out),
    ]
    return [*command, "--gen_kwargs", f"max_gen_toks={NEW_TOKENS}"] if item.generates else command


def _seconds(command: list[str], cwd: Path, settings: dict[str, str]) -> float:
    """Runs Python with `command`; its wall time.

    Raises:
        RunFailed: it failed.
    """
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    started = time.perf_counter()
    run = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if run.returncode:
        raise RunFailed(f"{' '.join(command)}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}")
    return seconds


def _spec(model: Path) -> Any:
    from iris_core.config import DataPart, EvaluationPart
    from iris_core.evaluation.harness import resolve_backend
    from iris_core.evaluation.miniature import FOLDER
    from iris_core.modeling.loading import resolve_dtype
    from iris_core.pipeline.specs import EvaluateSpec
    from iris_core.store import Artifact, Execution, Policy

    backend: Any = resolve_backend("auto", Execution())
    return EvaluateSpec(
        policy=Policy(model=Artifact.of(model)),
        evaluation=EvaluationPart(max_gen_tokens=NEW_TOKENS, backend=backend),
        data=Artifact.of(FOLDER),
        pairs=Artifact(path=Path(), digest="benchmark"),
        answer_pattern=None,
        stop_token_ids=[],
        chat_template_kwargs={},
        template_date=DataPart(path="benchmark").template_date,
        max_new_tokens=NEW_TOKENS,
        dtype=resolve_dtype("auto"),
        seed=0,
    )


def _text(spec: Any, ours: Scores, peer: Scores) -> str:
    equal = sum(abs(ours[name] - peer[name]) < 1e-9 for name in ours)
    return "\n".join(
        [
            f"{spec.policy.model.path.name}, {spec.dtype}, backend `{spec.evaluation.backend}`, at most {NEW_TOKENS} "
            "generated tokens; wall time of the commands, `lm_eval run` ten times, ours once. Scores are equal on "
            f"{equal} of {len(ours)} benchmarks:",
            "",
            "| benchmark | ours | lm_eval |",
            "|---|---|---|",
            *(f"| {name} | {ours[name]:.4f} | {peer[name]:.4f} |" for name in ours),
        ]
    )
