"""A real tiny loop whose files were damaged: it goes on, and ends with what an undisturbed one gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from iris_core import evaluate as evaluate_module
from iris_core import generate as generate_module
from iris_core.common.errors import DataError
from iris_core.config import Experiment, parse_experiment
from iris_core.evaluate import evaluate
from iris_core.evaluation.folder import benchmark_folder
from iris_core.generate import generate
from iris_core.pipeline import plan
from iris_core.prepare import prepare
from iris_core.store import Manifest, Spec, completed, run_stage
from iris_core.train import train
from iris_core.training.trainer import SelfPlayTrainer
from tests.iris_core.damage import DAMAGES, damage

pytestmark = pytest.mark.integration

WORK = {"generate": generate, "train": train, "evaluate": evaluate}
FINISHED = {
    "generate": ["responses/shard-00001.parquet", "responses", "spec.json", "manifest.json"],
    "train": ["adapter/adapter_model.safetensors", "opponent_logprobs.parquet", "manifest.json"],
    "evaluate": ["scores/winogrande.json", "heldout.parquet", "scores", "manifest.json"],
}
UNFINISHED = {
    "generate": ["responses/shard-00001.parquet", "spec.json"],
    "train": [
        "work/checkpoint-4/optimizer-00000.safetensors",
        "work/checkpoint-4/history.jsonl",
        "work/checkpoint-4/trainer_state.json",
        "work/checkpoint-4",
        "work/history.jsonl",
        "work",
        "opponent_logprobs.parquet",
        "spec.json",
    ],
    "evaluate": ["scores/winogrande.json", "spec.json"],
}


class Loop(NamedTuple):
    """A loop's specs by stage, and where each was run to its end and where it was killed."""

    specs: dict[str, Spec]
    whole: dict[str, Manifest]
    killed: dict[str, Path]


def experiment(tiny_model: Path, pairs_file: Path) -> Experiment:
    return parse_experiment(
        {
            "name": "damaged",
            "model": {"path": str(tiny_model), "dtype": "float32"},
            "data": {"path": str(pairs_file), "heldout": 4, "answer_pattern": r"(?m)^Answer: (.+)$"},
            "generation": {"backend": "transformers", "max_new_tokens": 8, "shard_size": 6},
            "training": {
                "learning_rate": 5e-3,
                "batch_size": 8,
                "epochs": 2,
                "tokens_per_batch": 256,
                "checkpoint_every": 2,
            },
            "evaluation": {"benchmarks": ["winogrande", "gpqa"], "data_dir": "miniature", "backend": "hf"},
        }
    )


@pytest.fixture(scope="module")
def loop(tiny_model, pairs_file, tmp_path_factory) -> Loop:
    folder, config = tmp_path_factory.mktemp("loop"), experiment(tiny_model, pairs_file)
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(config), folder / "prepare", prepare))
    state = prepared.start(config)
    specs: dict[str, Any] = {"generate": plan.generate_spec(config, prepared, state)}
    whole = {"generate": run_stage(specs["generate"], folder / "generate", generate)}
    specs["train"] = plan.train_spec(config, prepared, state, whole["generate"])
    specs["evaluate"] = plan.evaluate_spec(config, prepared, state.policy, benchmark_folder(config.evaluation.data_dir))
    killed = {}
    for stage, spec in specs.items():
        if stage not in whole:
            whole[stage] = run_stage(spec, folder / stage, WORK[stage])
        killed[stage] = folder / f"killed-{stage}"
        with suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
            die_late(patch)
            run_stage(spec, killed[stage], WORK[stage])
        assert not (killed[stage] / "manifest.json").exists()
    return Loop(specs, whole, killed)


def die_late(patch: pytest.MonkeyPatch) -> None:
    """Ends a stage in its third shard, its sixth step or its second benchmark."""
    for owner, name, last in (
        (generate_module, "write_shard", 2),
        (SelfPlayTrainer, "training_step", 5),
        (evaluate_module, "score_benchmark", 1),
    ):
        patch.setattr(owner, name, dies_after(getattr(owner, name), last))


def dies_after(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    done: list[None] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(None)
        return function(*arguments, **options)

    return counted


def found(manifest: Manifest) -> Any:
    """What must be equal, however often the stage was disturbed: everything but times."""
    if manifest.stage == "evaluate":
        scores = manifest.metrics["benchmarks"].items()
        return {name: score["value"] for name, score in scores}, manifest.outputs["heldout"]
    if manifest.stage == "train":
        lines = manifest.artifact("history").path.read_text().splitlines()
        timed = ("time", "tokens_per_second", "memory_gb")
        rows = [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
        return rows, {name: held for name, held in manifest.outputs.items() if name != "history"}
    return manifest.outputs


def units_of(folder: Path) -> dict[Path, int]:
    """When each unit in a stage's folder was written."""
    marks = {path.name for path in (folder / ".digests").iterdir()} - {"spec.json"}
    paths = [path for path in folder.rglob("*") if path.name in marks and ".digests" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in paths}


def check(loop: Loop, stage: str, folder: Path, name: str, kind: str) -> None:
    """Damages a file of a stage that was run in `folder`, runs it again, and compares."""
    before, damaged = units_of(folder), folder / name
    damage(damaged, kind)
    manifest = run_stage(loop.specs[stage], folder, WORK[stage])
    assert found(manifest) == found(loop.whole[stage])
    assert set(manifest.files) == set(loop.whole[stage].files)
    after = units_of(folder)
    for unit in before.keys() & after.keys():  # what was not damaged is not redone
        if damaged not in (unit, *unit.parents):
            assert after[unit] == before[unit]
    left = {path.name for path in folder.iterdir()}
    assert left == {path.name for path in loop.whole[stage].folder.iterdir()}
    assert run_stage(loop.specs[stage], folder, WORK[stage]).reused


def damages(files: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    """Stage, file and kind of damage: every file once, every kind at least once; `test_units` has every combination."""
    cases = [(stage, name) for stage, names in files.items() for name in names]
    return [(*case, DAMAGES[number % len(DAMAGES)]) for number, case in enumerate(cases)]


@pytest.mark.parametrize(("stage", "name", "kind"), damages(FINISHED))
def test_a_finished_stage_is_repaired(loop, tmp_path, caplog, stage, name, kind):
    folder = tmp_path / stage
    shutil.copytree(loop.whole[stage].folder, folder, symlinks=True)
    check(loop, stage, folder, name, kind)
    if kind not in ("missing", "dangling"):
        assert any(name in message for message in caplog.messages)


@pytest.mark.parametrize(("stage", "name", "kind"), damages(UNFINISHED))
def test_an_unfinished_stage_goes_on(loop, tmp_path, stage, name, kind):
    folder = tmp_path / stage
    shutil.copytree(loop.killed[stage], folder, symlinks=True)
    check(loop, stage, folder, name, kind)


@pytest.mark.parametrize(("said", "wrong"), [('"confirmed": ', '"confirmed": !'), ('"order": 2.0', '"order": 3.0')])
def test_a_manifest_that_says_something_else_is_not_believed(loop, tmp_path, said, wrong):
    folder = tmp_path / "train"
    shutil.copytree(loop.whole["train"].folder, folder)
    file = folder / "manifest.json"
    text = file.read_text()
    changed = text.replace(said, wrong).replace("!true", "false").replace("!false", "true")
    assert json.loads(changed) != json.loads(text)
    file.write_text(changed)
    assert completed(folder, loop.specs["train"]) is None
    again = run_stage(loop.specs["train"], folder, train)
    assert again.metrics["gap"] == loop.whole["train"].metrics["gap"]
    assert again.spec == loop.whole["train"].spec


def test_the_newest_whole_checkpoint_is_taken(loop, tmp_path, caplog):
    folder = tmp_path / "train"
    shutil.copytree(loop.killed["train"], folder)
    steps = {path.name for path in (folder / "work").glob("checkpoint-*")}
    assert steps == {"checkpoint-2", "checkpoint-4"}
    damage(folder / "work" / "checkpoint-4", "flipped")
    taken: list[int] = []
    step = SelfPlayTrainer.training_step

    def note(self: Any, *arguments: Any, **options: Any) -> Any:
        taken.append(self.state.global_step)
        return step(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SelfPlayTrainer, "training_step", note)
        run_stage(loop.specs["train"], folder, train)
    assert taken == [2, 3, 4, 5]
    assert any("checkpoint-4 is damaged" in message for message in caplog.messages)


def test_training_refuses_responses_that_changed(loop, tmp_path):
    responses = tmp_path / "responses"
    shutil.copytree(loop.whole["generate"].artifact("responses").path, responses)
    spec = loop.specs["train"]
    moved = spec.synthetic[0].model_copy(update={"path": responses})
    spec = spec.model_copy(update={"synthetic": [moved]})
    (responses / "shard-00009.parquet").write_bytes((responses / "shard-00000.parquet").read_bytes())
    with pytest.raises(DataError, match="has changed since `generate` wrote it: run the loop again"):
        run_stage(spec, tmp_path / "train", train)
