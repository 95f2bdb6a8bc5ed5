"""Everything the report shows, as JSON-able data read from an experiment's manifests: what `report.json` holds.

Unfinished experiments give what there is: a stage without a manifest is marked, and its numbers are missing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import yaml

from iris_core.common.redaction import redact
from iris_core.pipeline.plan import Prepared
from iris_core.reporting.summary import (
    Interval,
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
from iris_core.store.places import place_of

RECIPE = "recipe.yaml"
SAMPLES = 6
LONGEST_TEXT = 4000


def collect(store: Store) -> dict[str, Any]:
    """All figures of the experiment in `store`."""
    found = rows(store)
    manifests = stages(store)
    recipe = recipe_of(store, manifests)
    return {
        "experiment": store.home.name,
        "wanted": yaml.safe_load(recipe).get("iterations") if recipe else None,
        "done": len(list(iterations(store))),
        "stopped": any(m.metrics.get("stop", False) for m in manifests.values() if m and m.stage == "schedule"),
        "inputs": inputs(manifests.get("prepare")),
        "objective": objective(manifests.get(place_of(0, "train"))),
        "result": sentence(found),
        "warnings": warned(store),
        "champion": best._asdict() if (best := champion(store)) else None,
        "tiles": tiles(found),
        "table": {"headers": headers(found), "rows": [cells(row) for row in found]},
        "models": [model_of(store, row) for row in found],
        "steps": steps(store),
        "benchmarks": protocols(store),
        "samples": answered(store) or sampled(store),
        "stages": [stage_of(place, manifest) for place, manifest in manifests.items()],
        "recipe": recipe,
    }


def warned(store: Store) -> list[dict[str, Any]]:
    """What each stage warned of, stage by stage."""
    grouped = itertools.groupby(warnings(store), key=lambda warning: warning.place)
    return [
        {"place": place_name(place), "texts": [redact(warning.text) for warning in found]} for place, found in grouped
    ]


def recipe_of(store: Store, manifests: dict[str, Manifest | None]) -> str:
    """The recipe of the newest run without credentials; empty if none was kept."""
    kept = store.home / RECIPE
    if kept.is_file():
        return redact(kept.read_text(encoding="utf-8"))
    registered = [m.spec["recipe"] for m in manifests.values() if m and m.stage == "register"]
    return redact(registered[-1]) if registered else ""


def inputs(prepared: Manifest | None) -> dict[str, Any]:
    """The model that self-play starts from, and the annotated pairs."""
    if prepared is None:
        return {}
    start = Prepared.of(prepared)
    return {
        "model": redact(str(prepared.spec["model"]["path"])),
        "revision": prepared.spec["model_commit"],
        "model_digest": start.initial.model.digest,
        "dtype": start.dtype,
        "data": redact(label_of(prepared.spec["data"]["path"])),
        "data_digest": start.pairs.digest,
        **{name: prepared.metrics.get(name) for name in ("train_pairs", "heldout_pairs", "dropped")},
    }


def label_of(path: str | list[dict[str, Any]]) -> str:
    """The annotated data's path, or those of its sources."""
    return path if isinstance(path, str) else ", ".join(source["path"] for source in path)


def objective(trained: Manifest | None) -> dict[str, Any]:
    """The settings of the objective that the experiment trains with; empty before the first training."""
    return dict(trained.spec["objective"]) if trained else {}


def model_of(store: Store, row: Row) -> dict[str, Any]:
    """One row of the table as numbers, with what the table leaves out."""
    initial = row.iteration is None
    evaluated, scheduled, generated = (
        store.manifest(place_of(row.iteration, stage)) for stage in ("evaluate", "schedule", "generate")
    )
    scores = evaluated.metrics.get("benchmarks", {}) if evaluated else {}
    return {
        **dataclasses.asdict(row),
        "name": "initial" if initial else str(row.iteration),
        "errors": {name: score.get("stderr") for name, score in scores.items()},
        "reason": scheduled.metrics["reason"] if scheduled else None,
        "generated": generated.metrics if generated else None,
    }


def steps(store: Store) -> dict[str, Any]:
    """The training histories one after another: columns, and the index at which each iteration starts."""
    starts: list[int] = []
    lines: list[dict[str, Any]] = []
    for t in iterations(store):
        trained = store.manifest(place_of(t, "train"))
        assert trained is not None
        starts.append(len(lines))
        history = trained.artifact("history").intact().read_text(encoding="utf-8")
        lines += [json.loads(line) for line in history.splitlines()]
    names = sorted({name for line in lines for name in line} - {"time"})
    return {
        "starts": starts,
        "columns": {name: [line.get(name) for line in lines] for name in names},
    }


def protocols(store: Store) -> list[dict[str, Any]]:
    """How each benchmark was run, from the newest evaluation that there is."""
    last = max(iterations(store), default=-1)
    for iteration in [*range(last, -1, -1), None]:
        if evaluated := store.manifest(place_of(iteration, "evaluate")):
            scores = evaluated.metrics.get("benchmarks", {})
            wanted = ("task", "shots", "metric", "n", "protocol")
            return [{"name": name, **{key: score.get(key) for key in wanted}} for name, score in scores.items()]
    return []


def answered(store: Store) -> list[dict[str, Any]]:
    """Held-out prompts with the greedy answers of the initial and of the last evaluated model."""
    last = max(iterations(store), default=-1)
    correct = [_correct(store.manifest(place_of(iteration, "evaluate"))) for iteration in (None, last)]
    return [
        {
            "prompt": _clip(sample.prompt),
            "annotated": _clip(sample.annotated),
            "before": _clip(sample.before),
            "after": _clip(sample.after),
            "before_correct": correct[0].get(sample.prompt),
            "after_correct": correct[1].get(sample.prompt),
            "how": "greedy answers of the initial and of the last model",
        }
        for sample in samples(store, SAMPLES)
    ]


def sampled(store: Store) -> list[dict[str, Any]]:
    """For data without an answer pattern: what the first and the last opponent sampled for held-out prompts."""
    made = [store.manifest(place_of(t, "generate")) for t in (0, max(iterations(store), default=-1))]
    prepared = store.manifest("prepare")
    if prepared is None or made[0] is None or made[1] is None:
        return []
    before, after = (_responses(manifest.artifact("responses").intact()) for manifest in made if manifest)
    pairs = parquet.read_table(prepared.artifact("pairs").intact()).to_pylist()
    shown = [pair for pair in pairs if pair["split"] == "heldout" and pair["prompt_id"] in before.keys() & after.keys()]
    return [
        {
            "prompt": _clip(pair["prompt"]),
            "annotated": _clip(pair["response"]),
            "before": _clip(before[pair["prompt_id"]]),
            "after": _clip(after[pair["prompt_id"]]),
            "before_correct": None,
            "after_correct": None,
            "how": f"sampled by the opponents of iterations 0 and {max(iterations(store))}",
        }
        for pair in shown[:: max(1, len(shown) // SAMPLES)][:SAMPLES]
    ]


def stage_of(place: str, manifest: Manifest | None) -> dict[str, Any]:
    """The lineage of one stage: its key, everything in its spec, what came out."""
    if manifest is None:
        return {"place": place, "finished": False}
    spec = {name: value for name, value in manifest.spec.items() if name != "recipe"}
    return {
        "place": place,
        "finished": True,
        "key": manifest.key,
        "seed": manifest.spec.get("seed"),
        "versions": manifest.spec["versions"],
        "started": manifest.started.isoformat(timespec="seconds"),
        "seconds": manifest.seconds,
        "bytes": sum(size for size, _ in manifest.files.values()),
        "outputs": {name: output.digest for name, output in manifest.outputs.items()},
        "spec": json.loads(redact(json.dumps(spec))),
        "registered": manifest.metrics if manifest.stage == "register" else None,
    }


def sentence(found: Sequence[Row]) -> str:
    """What self-play did to the model, with intervals and without more than they allow."""
    trained = [row for row in found if row.iteration is not None]
    if not trained:
        return "No iteration has finished training yet."
    first, last = found[0], trained[-1]
    count = len(trained)
    parts = [
        _change("exact match on held-out prompts", first.exact_match, last.exact_match, 2),
        _change(
            "the held-out log-probability of annotated answers (nats a token)",
            first.logprob,
            last.logprob,
            3,
        ),
    ]
    if first.average is not None and last.average is not None and first is not last:
        label = f"{last.label} benchmark average" if last.label else "benchmark average"
        parts.append(_change(f"the {label} (percent, ±1.96 standard errors)", _percent(first), _percent(last), 1))
    said = "; ".join(part for part in parts if part) or "nothing was measured both before and after"
    return f"After {count} iteration{'s' if count > 1 else ''} of self-play, {said}."


def tiles(found: Sequence[Row]) -> list[dict[str, str]]:
    """The most telling numbers, before and after."""
    trained = [row for row in found if row.iteration is not None]
    if not trained:
        return []
    first, last = found[0], trained[-1]
    label = f"{last.label} average, %" if last.label else "benchmark average, %"
    pairs = [
        ("held-out exact match", first.exact_match, last.exact_match, 2),
        ("held-out log-prob per token", first.logprob, last.logprob, 3),
    ]
    shown = [
        _tile(name, old.value, new.value, digits, f"95 % {_range(new, digits)}")
        for name, old, new, digits in pairs
        if old and new
    ]
    if first.average is not None and last.average is not None and last.stderr is not None:
        note = f"standard error {100 * last.stderr:.1f}"
        shown.append(_tile(label, 100 * first.average, 100 * last.average, 1, note))
    if len(trained) > 1 and trained[0].gap and last.gap:
        note = f"ESS {last.gap.ess:.0f} of {last.gap.pairs}"
        name = "gap D̂, first and last iteration"
        shown.insert(2, _tile(name, trained[0].gap.value, last.gap.value, 3, note))
    return shown


def _tile(name: str, before: float, after: float, digits: int, note: str) -> dict[str, str]:
    return {
        "name": name,
        "before": f"{before:.{digits}f}",
        "after": f"{after:.{digits}f}",
        "note": note,
    }


def _change(what: str, old: Interval | None, new: Interval | None, digits: int) -> str:
    if old is None or new is None:
        return ""
    apart = new.low > old.high or new.high < old.low
    verb = ("rose" if new.value > old.value else "fell") if apart else "moved within its intervals"
    ends = [f"{i.value:.{digits}f} {_range(i, digits)}" for i in (old, new)]
    return f"{what} {verb} from {ends[0]} to {ends[1]}"


def _range(interval: Interval, digits: int) -> str:
    return f"[{interval.low:.{digits}f},\u00a0{interval.high:.{digits}f}]"


def _percent(row: Row) -> Interval | None:
    """The average and 1.96 standard errors around it; None where the error is unknown, for then no change can be claimed."""
    if row.average is None or row.stderr is None:
        return None
    center, spread = 100 * row.average, 196 * row.stderr
    return Interval(center, max(0.0, center - spread), min(100.0, center + spread))


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
