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
        ("sample", pa.int32()),
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


def asked(shard: list[Pair], samples: int) -> list[tuple[Pair, int]]:
    """The prompts of a shard as they are sampled, with the number of the sample: `samples` times, held-out ones once.

    The samples of a prompt follow each other, so that an engine with a cache of prefixes reads it once.
    """
    return [(pair, number) for pair in shard for number in range(samples if pair.split == "train" else 1)]


def sampling_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one response: a digest of the stage's seed, the prompt and the number of the sample, below 2^31.

    Sample 0 has the seed of a prompt that is answered once.
    """
    name = f"{seed}:{prompt_id}:{sample}" if sample else f"{seed}:{prompt_id}"
    return int(text_digest(name)[:8], 16) >> 1


def write_shard(
    path: Path,
    requests: list[tuple[Pair, int]],
    samples: list[Sample],
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: list[int],
) -> None:
    """Writes the response to each of `requests` (from `asked`); its text is without the tokens that ended it."""
    texts = [[token for token in sample.token_ids if token not in stop_token_ids] for sample in samples]
    rows = [
        {
            "prompt_id": pair.prompt_id,
            "sample": number,
            "split": pair.split,
            "response": tokenizer.decode(text, skip_special_tokens=True),
            "token_ids": sample.token_ids,
            "finish_reason": sample.finish_reason,
        }
        for (pair, number), sample, text in zip(requests, samples, texts, strict=True)
    ]
    write_parquet(path, pa.Table.from_pylist(rows, SCHEMA))


def count_tokens(path: Path) -> int:
    """The tokens of a shard's responses."""
    column = pq.read_table(path, columns=["token_ids"])["token_ids"]
    return int(pc.sum(pc.list_value_length(column)).as_py())
