"""Collects everything the report shows from an experiment's manifests.

An unfinished experiment gives what there is: a stage without a manifest is marked, and its numbers are missing.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import yaml

from iris_core.common.redaction import redact
from iris_core.config import ObjectivePart, Source
from iris_core.pipeline.metrics import (
    EvaluateMetrics,
    GenerateMetrics,
    PrepareMetrics,
    RegisterMetrics,
    ScheduleMetrics,
    Score,
)
from iris_core.pipeline.plan import Prepared
from iris_core.pipeline.specs import PrepareSpec, RegisterSpec, TrainSpec
from iris_core.reporting.findings import sentence, tiles
from iris_core.reporting.report import (
    Answers,
    BenchmarkSettings,
    Inputs,
    Model,
    Report,
    Stage,
    StageWarnings,
    Steps,
    Table,
)
from iris_core.reporting.summary import (
    Row,
    cells,
    champion,
    headers,
    iterations,
    place_name,
    rows,
    samples,
    stages,
    warnings,
)
from iris_core.store import Manifest, Store
from iris_core.store.experiment import RECIPE
from iris_core.store.places import place_of

SAMPLES = 6
LONGEST_TEXT = 4000


def collect(store: Store) -> Report:
    """All figures of the experiment in `store`.

    Raises:
        StoreError: a manifest is of another version of IRIS.
    """
    found, manifests = rows(store), stages(store)
    recipe = recipe_of(store, manifests)
    return Report(
        experiment=store.home.name,
        wanted=yaml.safe_load(recipe).get("iterations") if recipe else None,
        done=len(list(iterations(store))),
        stopped=any(m and m.stage == "schedule" and ScheduleMetrics.of(m).stop for m in manifests.values()),
        inputs=inputs(manifests.get("prepare")),
        objective=objective(manifests.get(place_of(0, "train"))),
        result=sentence(found),
        warnings=stage_warnings(store),
        champion=champion(store),
        tiles=tiles(found),
        table=Table(headers=headers(found), rows=[cells(row) for row in found]),
        models=[model_of(store, row) for row in found],
        steps=steps(store),
        benchmarks=benchmark_settings(store),
        samples=answered(store) or sampled(store),
        stages=[stage_of(place, manifest) for place, manifest in manifests.items()],
        recipe=recipe,
    )


def stage_warnings(store: Store) -> list[StageWarnings]:
    """The warnings, stage by stage."""
    grouped = itertools.groupby(warnings(store), key=lambda warning: warning.place)
    return [
        StageWarnings(place=place_name(place), texts=[redact(warning.text) for warning in found])
        for place, found in grouped
    ]


def recipe_of(store: Store, manifests: dict[str, Manifest | None]) -> str:
    """The recipe of the newest run without credentials; empty if none was kept."""
    kept = store.home / RECIPE
    if kept.is_file():
        return redact(kept.read_text(encoding="utf-8"))
    registered = [manifest for manifest in manifests.values() if manifest and manifest.stage == "register"]
    return redact(RegisterSpec.of(registered[-1]).recipe) if registered else ""


def inputs(prepared: Manifest | None) -> Inputs | None:
    """The model that self-play starts from, and the annotated pairs."""
    if prepared is None:
        return None
    start, spec, found = Prepared.of(prepared), PrepareSpec.of(prepared), PrepareMetrics.of(prepared)
    return Inputs(
        model=redact(spec.model.path),
        revision=spec.model_commit,
        model_digest=start.initial.model.digest,
        dtype=start.dtype,
        data=redact(label_of(spec.data.path)),
        data_digest=start.pairs.digest,
        train_pairs=found.train_pairs,
        heldout_pairs=found.heldout_pairs,
        prompts=found.prompts,
        dropped=found.dropped,
    )


def label_of(path: str | list[Source]) -> str:
    """The path of the annotated data, or those of its sources."""
    return path if isinstance(path, str) else ", ".join(source.path for source in path)


def objective(trained: Manifest | None) -> ObjectivePart | None:
    """The objective that the experiment trains with; None before the first training."""
    return TrainSpec.of(trained).objective if trained else None


def model_of(store: Store, row: Row) -> Model:
    """One row of the table as numbers, with what the table leaves out."""
    scheduled, generated = (store.manifest(place_of(row.iteration, stage)) for stage in ("schedule", "generate"))
    return Model(
        **dict(row),
        name="initial" if row.iteration is None else str(row.iteration),
        errors={name: score.stderr for name, score in _scores(store, row.iteration).items()},
        reason=ScheduleMetrics.of(scheduled).reason if scheduled else None,
        generated=GenerateMetrics.of(generated) if generated else None,
    )


def steps(store: Store) -> Steps:
    """The training histories one after another."""
    starts: list[int] = []
    lines: list[dict[str, Any]] = []
    for t in iterations(store):
        trained = store.manifest(place_of(t, "train"))
        assert trained is not None
        starts.append(len(lines))
        history = trained.artifact("history").intact().read_text(encoding="utf-8")
        lines += [json.loads(line) for line in history.splitlines()]
    names = sorted({name for line in lines for name in line} - {"time"})
    return Steps(starts=starts, columns={name: [line.get(name) for line in lines] for name in names})


def benchmark_settings(store: Store) -> list[BenchmarkSettings]:
    """How each benchmark was run, from the newest evaluation that there is."""
    last = max(iterations(store), default=-1)
    newest_first = [*range(last, -1, -1), None]
    newest = next((t for t in newest_first if store.manifest(place_of(t, "evaluate"))), None)
    return [
        BenchmarkSettings(name=name, **score.model_dump(exclude={"value", "stderr", "recorded"}))
        for name, score in _scores(store, newest).items()
    ]


def answered(store: Store) -> list[Answers]:
    """Held-out prompts with the greedy answers of the initial and of the last evaluated model."""
    last = max(iterations(store), default=-1)
    correct = [_correct(store.manifest(place_of(iteration, "evaluate"))) for iteration in (None, last)]
    return [
        Answers(
            prompt=_clip(sample.prompt),
            annotated=_clip(sample.annotated),
            before=_clip(sample.before),
            after=_clip(sample.after),
            before_correct=correct[0].get(sample.prompt),
            after_correct=correct[1].get(sample.prompt),
            how="greedy answers of the initial and of the last model",
        )
        for sample in samples(store, SAMPLES)
    ]


def sampled(store: Store) -> list[Answers]:
    """For data without an answer pattern: what the first and the last opponent sampled for held-out prompts."""
    last = max(iterations(store), default=-1)
    first_made, last_made = (store.manifest(place_of(t, "generate")) for t in (0, last))
    prepared = store.manifest("prepare")
    if prepared is None or first_made is None or last_made is None:
        return []
    before, after = (_responses(manifest.artifact("responses").intact()) for manifest in (first_made, last_made))
    pairs = parquet.read_table(prepared.artifact("pairs").intact()).to_pylist()
    shown = [pair for pair in pairs if pair["split"] == "heldout" and pair["prompt_id"] in before.keys() & after.keys()]
    return [
        Answers(
            prompt=_clip(pair["prompt"]),
            annotated=_clip(pair["response"]),
            before=_clip(before[pair["prompt_id"]]),
            after=_clip(after[pair["prompt_id"]]),
            how=f"sampled by the opponents of iterations 0 and {last}",
        )
        for pair in shown[:: max(1, len(shown) // SAMPLES)][:SAMPLES]
    ]


def stage_of(place: str, manifest: Manifest | None) -> Stage:
    """The lineage of one stage: its key, everything in its spec, its outputs."""
    if manifest is None:
        return Stage(place=place, finished=False)
    spec = json.loads(redact(json.dumps({name: value for name, value in manifest.spec.items() if name != "recipe"})))
    return Stage(
        place=place,
        finished=True,
        key=manifest.key,
        seed=spec.get("seed"),
        versions=spec.get("versions", {}),
        started=manifest.started.isoformat(timespec="seconds"),
        seconds=manifest.seconds,
        bytes=sum(size for size, _ in manifest.files.values()),
        outputs={name: output.digest for name, output in manifest.outputs.items()},
        spec=spec,
        registered=RegisterMetrics.of(manifest) if manifest.stage == "register" else None,
    )


def _scores(store: Store, iteration: int | None) -> dict[str, Score]:
    """The benchmark scores of the model after an iteration (None: of the initial model); empty if it has none."""
    evaluated = store.manifest(place_of(iteration, "evaluate"))
    return EvaluateMetrics.of(evaluated).benchmarks if evaluated else {}


def _correct(manifest: Manifest | None) -> dict[str, bool]:
    """Whether each held-out prompt was answered exactly."""
    if manifest is None or "heldout" not in manifest.outputs:
        return {}
    table = parquet.read_table(manifest.artifact("heldout").intact(), columns=["prompt", "correct"])
    return {row["prompt"]: row["correct"] for row in table.to_pylist()}


def _responses(folder: Path) -> dict[str, str]:
    return {
        row["prompt_id"]: row["response"]
        for row in parquet.read_table(folder, columns=["prompt_id", "response"]).to_pylist()
    }


def _clip(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"
