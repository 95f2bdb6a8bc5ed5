"""Stage `generate`: the opponent answers every prompt, shard by shard.

    python -m iris_core.generate --spec spec.json --out DIR

A shard is written whole or not at all. Its responses depend on its own prompts and seeds only, so that a resumed run
gives the responses of an uninterrupted one.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from iris_core import models
from iris_core.data import Pair, load_pairs
from iris_core.digest import text_digest
from iris_core.engines import Sample, open_engine
from iris_core.progress import Progress
from iris_core.specs import GenerateSpec
from iris_core.stage import main
from iris_core.store import WORK, Outcome

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("response", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)


def generate(spec: GenerateSpec, out: Path) -> Outcome:
    """Samples a response to every prompt of `spec.pairs`, resuming at the first missing shard."""
    models.verify(spec.policy)
    folder = out / "responses"
    folder.mkdir(exist_ok=True)
    pairs = load_pairs(spec.pairs.path)
    size = spec.generation.shard_size
    shards = {
        folder / f"shard-{start // size:05d}.parquet": pairs[start : start + size]
        for start in range(0, len(pairs), size)
    }
    missing = {path: shard for path, shard in shards.items() if not path.exists()}
    started = time.monotonic()
    tokens = _sample_shards(spec, missing, len(pairs), out / WORK) if missing else 0
    metrics = summarize([row for path in shards for row in pq.read_table(path).to_pylist()])
    if tokens:
        metrics["tokens_per_second"] = tokens / (time.monotonic() - started)
    return Outcome(outputs={"responses": folder}, metrics=metrics)


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over responses: how many, how long, how they ended, how many are empty."""
    tokens = sum(len(row["token_ids"]) for row in rows)
    return {
        "prompts": len(rows),
        "tokens": tokens,
        "mean_tokens": tokens / len(rows),
        "truncated": sum(row["finish_reason"] == "length" for row in rows),
        "empty": sum(not row["response"].strip() for row in rows),
        "finish_reasons": dict(Counter(row["finish_reason"] for row in rows)),
    }


def prompt_seed(seed: int, prompt_id: str) -> int:
    """The sampling seed of one prompt: a digest of the stage's seed and the prompt, below 2^31."""
    return int(text_digest(f"{seed}:{prompt_id}")[:8], 16) >> 1


def _sample_shards(
    spec: GenerateSpec, shards: dict[Path, list[Pair]], total: int, work: Path
) -> int:
    """Fills the missing `shards`; returns the tokens sampled."""
    tokenizer = models.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    prompts = {
        pair.prompt_id: models.prompt_ids(tokenizer, pair.prompt, spec.system_prompt)
        for shard in shards.values()
        for pair in shard
    }
    progress = Progress("generate", total, done=total - len(prompts))
    sample = open_engine(spec, max(map(len, prompts.values())), work)
    tokens, started = 0, time.monotonic()
    for path, shard in shards.items():
        seeds = [prompt_seed(spec.seed, pair.prompt_id) for pair in shard]
        samples = sample([prompts[pair.prompt_id] for pair in shard], seeds)
        _write_shard(path, shard, samples, tokenizer)
        tokens += sum(len(item.token_ids) for item in samples)
        progress.advance(len(shard), tokens_per_second=tokens / (time.monotonic() - started))
    return tokens


def _write_shard(
    path: Path, shard: list[Pair], samples: list[Sample], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [
        {
            "prompt_id": pair.prompt_id,
            "split": pair.split,
            "response": tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            "token_ids": sample.token_ids,
            "finish_reason": sample.finish_reason,
        }
        for pair, sample in zip(shard, samples, strict=True)
    ]
    temporary = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
    temporary.replace(path)


if __name__ == "__main__":
    main(GenerateSpec, generate)
