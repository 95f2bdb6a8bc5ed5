"""Shards of responses: which prompts are in one, their seeds, and the Parquet file that holds what was sampled."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from iris_core.common.digest import text_digest
from iris_core.common.parquet import write_parquet
from iris_core.data.pairs import Pair
from iris_core.generation.engines import Sample

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("response", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)

Shards = dict[Path, list[Pair]]
"""The pairs of each shard, by the shard's file."""


def divide(pairs: list[Pair], size: int, folder: Path) -> Shards:
    """Divides `pairs` into shards of `size`, the last one of what is left, each with a file in `folder`."""
    return {
        folder / f"shard-{start // size:05d}.parquet": pairs[start : start + size]
        for start in range(0, len(pairs), size)
    }


def prompt_seed(seed: int, prompt_id: str) -> int:
    """The sampling seed of one prompt: a digest of the stage's seed and the prompt, below 2^31."""
    return int(text_digest(f"{seed}:{prompt_id}")[:8], 16) >> 1


def write_shard(
    path: Path,
    shard: list[Pair],
    samples: list[Sample],
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: list[int],
) -> None:
    """Writes the response to each pair of `shard`; its text is without the tokens that ended it."""
    texts = [[token for token in sample.token_ids if token not in stop_token_ids] for sample in samples]
    rows = [
        {
            "prompt_id": pair.prompt_id,
            "split": pair.split,
            "response": tokenizer.decode(text, skip_special_tokens=True),
            "token_ids": sample.token_ids,
            "finish_reason": sample.finish_reason,
        }
        for pair, sample, text in zip(shard, samples, texts, strict=True)
    ]
    write_parquet(path, pa.Table.from_pylist(rows, SCHEMA))


def count_tokens(path: Path) -> int:
    """The tokens of a shard's responses."""
    column = pq.read_table(path, columns=["token_ids"])["token_ids"]
    return int(pc.sum(pc.list_value_length(column)).as_py())
