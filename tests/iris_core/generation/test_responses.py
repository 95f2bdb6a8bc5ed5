"""Shards: which prompts are in one, their seeds, and the rows of their files."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from iris_core.data.pairs import Pair
from iris_core.generation.engines import Sample
from iris_core.generation.responses import asked, count_tokens, divide, sampling_seed, write_shard
from tests.iris_core.small_tokenizers import CHATML, byte_level

pytestmark = pytest.mark.unit


def test_the_last_shard_holds_what_is_left() -> None:
    pairs = [Pair(f"id{i}", "Why?", "So.", [1], [2]) for i in range(5)]
    assert divide(pairs, 2, Path("out")) == {
        Path("out/shard-00000.parquet"): pairs[:2],
        Path("out/shard-00001.parquet"): pairs[2:4],
        Path("out/shard-00002.parquet"): pairs[4:],
    }


def test_held_out_prompts_are_answered_once() -> None:
    train, heldout = Pair("a", "?", "", [1], []), Pair("b", "?", "x", [1], [2], "heldout")
    assert asked([train, heldout], 3) == [(train, 0), (train, 1), (train, 2), (heldout, 0)]


def test_a_seed_depends_on_the_prompt_and_the_stages_seed() -> None:
    """The SHA-256 of "0:a" begins with 9df3c5fa; without its last bit that is 0x4ef9e2fd."""
    assert sampling_seed(0, "a", 0) == 0x4EF9E2FD
    seeds = {sampling_seed(seed, f"id{i}", k) for seed in range(3) for i in range(100) for k in range(2)}
    assert len(seeds) == 600
    assert max(seeds) < 2**31


def test_the_text_of_a_response_is_without_its_end_special_or_not(tmp_path: Path) -> None:
    names = ("<|endoftext|>", "<|im_start|>")
    tokenizer = byte_level(CHATML, names, eos=names[0], plain=("<|im_end|>",))
    ids, ends = tokenizer("Yes<|im_end|>")["input_ids"], tokenizer("<|im_end|>")["input_ids"]
    pair = Pair("id", "Is it?", "Yes", [1], ids)
    samples = [Sample(ids, "stop"), Sample(ids[:1], "length")]
    write_shard(tmp_path / "shard", asked([pair], 2), samples, tokenizer, ends)
    rows = pq.read_table(tmp_path / "shard").to_pylist()
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [("id", 0), ("id", 1)]
    assert [row["response"] for row in rows] == ["Yes", "Ye"]
    assert [row["token_ids"] for row in rows] == [ids, ids[:1]]
    assert [row["finish_reason"] for row in rows] == ["stop", "length"]
    assert count_tokens(tmp_path / "shard") == len(ids) + 1
