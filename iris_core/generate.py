"""Stage `generate`: the opponent responds to every prompt, shard by shard; with several GPUs, on all of them.

    python -m iris_core.generate --spec spec.json --out DIR

Where there is a verifier, it judges the responses of a shard as soon as they are written; its verdicts are a file of
their own, so that a run that was killed meanwhile samples nothing again.
Verdicts belong to the responses that they are on: on others, as from two machines, they do not count.
A shard is written whole or not at all. Its responses depend on its own prompts and seeds alone: a resumed run gives the
responses of an uninterrupted one, and eight GPUs give those of one. Shards are the stage's items
(`iris_core.execution.items`): each engine does one after the other.
"""

from __future__ import annotations

import atexit
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iris_core.modeling.patches.imports import UNUSED, begin_imports

if __name__ == "__main__":
    begin_imports(UNUSED)

import pyarrow.parquet as pq

from iris_core.common.digest import file_digest, json_digest
from iris_core.common.files import make_folder, remove
from iris_core.common.progress import Progress
from iris_core.config import GenerationPart
from iris_core.data.pairs import load_pairs
from iris_core.execution.items import run_items
from iris_core.execution.stage import main
from iris_core.generation import engines
from iris_core.generation.responses import Shards, asked, count_tokens, divide, sampling_seed, write_shard
from iris_core.generation.verdicts import (
    VERDICTS,
    count_verdicts,
    mixed_warnings,
    verdicts_file,
    write_verdicts,
)
from iris_core.modeling import loading
from iris_core.pipeline.metrics import GenerateMetrics
from iris_core.pipeline.specs import GenerateSpec
from iris_core.pipeline.verifier import check_unchanged
from iris_core.store import Outcome
from iris_core.store.folders import WORK
from iris_core.store.units import Units, keep_only
from iris_core.verification.verdicts import undecided_warnings

RESPONSES = "responses"
ENGINES = "engines"  # in the work folder
MAX_TRUNCATED = 0.1  # share of truncated responses above which there is a warning


def generate(spec: GenerateSpec, out: Path) -> Outcome:
    """Samples responses to the prompts of `spec.pairs`, starting at the missing shards; with several GPUs, on all.

    Prompts without annotation are answered only where verdicts on the answers are learned from.

    Raises:
        DataError: the verifier's files have changed.
        VerificationError: the verifier does not work.
    """
    engines.check_backend(spec)
    check_unchanged(spec.verification, spec.verifier_digest)
    shards = _shards(spec, out)
    loading.verify(spec.policy, spec.execution.patience)
    folders, units = _folders(spec, out), _units(spec, out)
    for folder in folders.values():
        make_folder(folder)
    unsampled = [path for path in shards if not units.holds(path)]
    unjudged = [path for path in shards if path not in unsampled and not _is_judged(spec, out, path)]
    missing = {path: shard for path, shard in shards.items() if path in unsampled or path in unjudged}
    started = time.monotonic()
    if missing:
        _do_missing(spec, out, missing, sum(map(len, shards.values())))
    for folder in folders.values():
        keep_only(folder, {file.name for path in shards for file in _files(spec, path)})
    seconds = time.monotonic() - started
    rate = sum(map(count_tokens, unsampled)) / seconds if unsampled else None
    rows = [row for path in shards for row in pq.read_table(path).to_pylist()]
    verdicts = [row for path in shards for file in _files(spec, path)[1:] for row in pq.read_table(file).to_pylist()]
    return Outcome(outputs=folders, metrics=summarize(spec.generation, rows, verdicts, rate))


def sampler(spec: GenerateSpec, out: Path) -> Callable[[str], None]:
    """Returns the function that does the shard with a name: samples and judges what is not there yet.

    The engine is opened for the first shard without responses.
    """
    if spec.execution.launcher == "ray":  # the stage has looked at those of another machine
        check_unchanged(spec.verification, spec.verifier_digest)
    shards, units = {path.name: (path, shard) for path, shard in _shards(spec, out).items()}, _units(spec, out)
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)

    @functools.cache
    def engine() -> engines.Sampler:
        # The longest of all prompts, not of this engine's: engines with the same settings give the same responses.
        longest = max(len(pair.prompt_ids) for _, shard in shards.values() for pair in shard)
        work = out / WORK / ENGINES
        make_folder(work)
        files = Path(tempfile.mkdtemp(dir=work))
        atexit.register(remove, files)  # on another machine than the stage's, nothing else removes them
        return engines.open_engine(spec, longest, files)

    def do_shard(name: str) -> None:
        path, shard = shards[name]
        if not units.holds(path):  # else by a run, or a worker, that was lost before it could say so
            requests = asked(shard, spec.generation.responses)
            seeds = [sampling_seed(spec.seed, pair.prompt_id, number) for pair, number in requests]
            samples = engine()([pair.prompt_ids for pair, _ in requests], seeds)
            with units.writing(path) as temporary:
                write_shard(temporary, requests, samples, tokenizer, spec.stop_token_ids)
        if not _is_judged(spec, out, path):
            with _verdict_units(spec, out, path).writing(verdicts_file(path)) as temporary:
                write_verdicts(temporary, spec, path, shard)

    return do_shard


def summarize(
    generation: GenerationPart, rows: list[dict[str, Any]], verdicts: list[dict[str, Any]], rate: float | None
) -> GenerateMetrics:
    """Counts over responses: how many, how long, how they ended, how many are empty and of which verdict.

    Args:
        generation: how they were sampled.
        rows: the responses.
        verdicts: on each of them, in their order; none without a verifier.
        rate: tokens per second.
    """
    tokens = sum(len(row["token_ids"]) for row in rows)
    truncated = sum(row["finish_reason"] == "length" for row in rows)
    counts = count_verdicts(rows, verdicts) if verdicts else {}
    judged = undecided_warnings(verdicts, "synthetic responses")
    if verdicts and generation.judged:
        judged.extend(mixed_warnings(counts, generation.responses))
    return GenerateMetrics(
        prompts=len({row["prompt_id"] for row in rows}),
        tokens=tokens,
        mean_tokens=tokens / len(rows),
        truncated=truncated,
        empty=sum(not row["response"].strip() for row in rows),
        finish_reasons=dict(Counter(row["finish_reason"] for row in rows)),
        tokens_per_second=rate,
        warnings=[*warnings(generation, truncated, len(rows)), *judged],
        **counts,
    )


def warnings(generation: GenerationPart, truncated: int, responses: int) -> list[str]:
    """Warnings about sampling that is not from the opponent and about truncated responses, one line each."""
    found = []
    if not generation.temperature == generation.top_p == 1:
        found.append(
            f"generation: at temperature {generation.temperature:g} and top_p {generation.top_p:g} responses are not "
            "samples of the opponent p_t, which the objective takes them for: set both to 1, unless that is what you "
            "want"
        )
    if truncated > MAX_TRUNCATED * responses:
        found.append(
            f"generation.max_new_tokens: {truncated} of {responses} synthetic responses were cut at "
            f"{generation.max_new_tokens} tokens: raise it, or see data.synthetic"
        )
    return found


def _shards(spec: GenerateSpec, out: Path) -> Shards:
    pairs = [pair for pair in load_pairs(spec.pairs) if pair.annotated or spec.generation.judged]
    return divide(pairs, spec.generation.shard_size, out / RESPONSES)


def _units(spec: GenerateSpec, out: Path) -> Units:
    return Units(out, spec.key(), spec.execution.patience)


def _verdict_units(spec: GenerateSpec, out: Path, path: Path) -> Units:
    """The units of verdicts on the responses at `path`, by their content: verdicts on others are none of them."""
    return Units(out, json_digest([spec.key(), file_digest(path)]), spec.execution.patience)


def _is_judged(spec: GenerateSpec, out: Path, path: Path) -> bool:
    """Whether the responses at `path` have verdicts, or need none."""
    return not spec.verification.judges or _verdict_units(spec, out, path).holds(verdicts_file(path))


def _folders(spec: GenerateSpec, out: Path) -> dict[str, Path]:
    """The outputs."""
    return {name: out / name for name in ((RESPONSES, VERDICTS) if spec.verification.judges else (RESPONSES,))}


def _files(spec: GenerateSpec, path: Path) -> list[Path]:
    """The files of the shard at `path`: its responses, and the verdicts on them where there is a verifier."""
    return [path, verdicts_file(path)] if spec.verification.judges else [path]


def _do_missing(spec: GenerateSpec, out: Path, missing: Shards, total: int) -> None:
    """Does the `missing` shards and reports each; `total` counts the prompts of all shards."""
    remove(out / WORK / ENGINES)  # of an earlier try
    progress = Progress("generate", total, done=total - sum(map(len, missing.values())))
    shards, tokens, started = {path.name: path for path in missing}, 0, time.monotonic()
    units = _units(spec, out)

    def on_done(name: str) -> None:
        nonlocal tokens
        path = units.written(shards[name])
        if spec.verification.judges:
            _verdict_units(spec, out, path).written(verdicts_file(path))
        tokens += count_tokens(path)
        progress.advance(len(missing[shards[name]]), tokens_per_second=tokens / (time.monotonic() - started))

    run_items(spec, out, list(shards), sampler, on_done)


if __name__ == "__main__":
    main(GenerateSpec, generate, sampler)
