"""Stage `generate`: the opponent responds to every prompt, shard by shard; with several GPUs, on all of them.

    python -m iris_core.generate --spec spec.json --out DIR

A shard is written whole or not at all. Its responses depend on its own prompts and seeds alone: a resumed run gives the
responses of an uninterrupted one, and eight GPUs give those of one. Each GPU has a process with an engine of its own
and a share of the missing shards. Rank 0 writes the shares down before it starts the others
(`iris_core.execution.distributed`).
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from iris_core.common.files import make_folder, write_atomic
from iris_core.common.progress import Progress
from iris_core.config import GenerationPart
from iris_core.data.pairs import load_pairs
from iris_core.execution import distributed, engine_process
from iris_core.execution.stage import main
from iris_core.generation.engines import open_engine
from iris_core.generation.responses import Shards, count_tokens, divide, prompt_seed, write_shard
from iris_core.modeling import loading
from iris_core.pipeline.metrics import GenerateMetrics
from iris_core.pipeline.specs import GenerateSpec
from iris_core.store import Outcome
from iris_core.store.folders import WORK
from iris_core.store.units import Units, keep_only

SHARES = "shares.json"  # in the work folder: the names of each rank's shards
POLL_S = 0.5
MAX_TRUNCATED = 0.1  # share of truncated responses above which there is a warning


def generate(spec: GenerateSpec, out: Path) -> Outcome:
    """Samples a response to every prompt of `spec.pairs`, starting at the missing shards; with several GPUs, on all."""
    folder = out / "responses"
    shards = divide(load_pairs(spec.pairs), spec.generation.shard_size, folder)
    if distributed.rank():
        _sample_share(spec, shards, out)
        return Outcome(outputs={})
    loading.verify(spec.policy)
    make_folder(folder)
    units = Units(out, spec.key())
    missing = {path: shard for path, shard in shards.items() if not units.holds(path)}
    started = time.monotonic()
    if missing:
        _sample_missing(spec, shards, missing, out)
    keep_only(folder, {path.name for path in shards})
    seconds = time.monotonic() - started
    rows = [row for path in shards for row in pq.read_table(path).to_pylist()]
    rate = sum(map(count_tokens, missing)) / seconds if missing else None
    return Outcome(outputs={"responses": folder}, metrics=summarize(spec.generation, rows, rate))


def summarize(generation: GenerationPart, rows: list[dict[str, Any]], rate: float | None) -> GenerateMetrics:
    """Counts over responses: how many, how long, how they ended, how many are empty. `rate` is in tokens per second."""
    tokens = sum(len(row["token_ids"]) for row in rows)
    truncated = sum(row["finish_reason"] == "length" for row in rows)
    return GenerateMetrics(
        prompts=len(rows),
        tokens=tokens,
        mean_tokens=tokens / len(rows),
        truncated=truncated,
        empty=sum(not row["response"].strip() for row in rows),
        finish_reasons=dict(Counter(row["finish_reason"] for row in rows)),
        tokens_per_second=rate,
        warnings=warnings(generation, truncated, len(rows)),
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


def _sample_missing(spec: GenerateSpec, shards: Shards, missing: Shards, out: Path) -> None:
    """Divides the `missing` shards among the ranks and waits until all are written; no rank is without a shard."""
    make_folder(out / WORK)
    write_atomic(out / WORK / SHARES, json.dumps([[path.name for path in missing]]))
    total = sum(map(len, shards.values()))
    with _reported(missing, total):
        _sample_share(spec, shards, out)


@engine_process.watched("generate")
def _sample_share(spec: GenerateSpec, shards: Shards, out: Path) -> None:
    """Samples and writes the shards that are this rank's share."""
    work, units = out / WORK, Units(out, spec.key())
    share = json.loads((work / SHARES).read_text(encoding="utf-8"))[distributed.rank()]
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    # The longest of all prompts, not of this share: engines with the same settings give the same responses.
    longest = max(len(pair.prompt_ids) for shard in shards.values() for pair in shard)
    sample = open_engine(spec, longest, work / f"rank-{distributed.rank()}")
    for path, shard in shards.items():
        if path.name in share:
            seeds = [prompt_seed(spec.seed, pair.prompt_id) for pair in shard]
            samples = sample([pair.prompt_ids for pair in shard], seeds)
            with units.writing(path) as temporary:
                write_shard(temporary, shard, samples, tokenizer, spec.stop_token_ids)


@contextmanager
def _reported(missing: Shards, total: int) -> Iterator[None]:
    """Reports each of the `missing` shards when it appears, whichever rank writes it, until the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=_report, args=(missing, total, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _report(missing: Shards, total: int, ended: threading.Event) -> None:
    waiting = dict(missing)
    progress = Progress("generate", total, done=total - sum(map(len, missing.values())))
    tokens, started, is_last = 0, time.monotonic(), False
    while not is_last:  # what appeared during the last wait is reported, too
        is_last = ended.wait(POLL_S)
        for path in [path for path in waiting if path.exists()]:
            tokens += count_tokens(path)
            rate = tokens / (time.monotonic() - started)
            progress.advance(len(waiting.pop(path)), tokens_per_second=rate)


if __name__ == "__main__":
    main(GenerateSpec, generate)
