"""A planted oracle, a model that knows the query for each question, has an execution accuracy of 1."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from iris_core.config import DataPart, EvaluationPart, VerificationPart
from iris_core.data.chat import Chat
from iris_core.data.conversations import single_turn
from iris_core.data.pairs import Pair, write_pairs
from iris_core.demo.sql_databases import write_folder
from iris_core.evaluate import exact_match, exact_set
from iris_core.evaluation.heldout import write_answers
from iris_core.modeling import loading
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Folder
from iris_core.sql.questions import write_pairs as write_sql_pairs
from iris_core.store import Artifact, Policy

pytestmark = pytest.mark.unit

TOKENS = 160  # of the longest answer, with this tokenizer


class Oracle:
    """Has the interface that answers are generated through, and knows the tokens of every answer."""

    only_attends = False

    def __init__(self, folder: Path, answers: dict[tuple[int, ...], list[int]]):
        self.model = loading.load_policy(Policy(model=Artifact.of(folder)), "float32")
        self.tokenizer = loading.load_tokenizer(folder)
        self.device = self.model.device
        self.answers = answers
        self.model.generate = self.generate

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **settings: Any) -> torch.Tensor:
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            answer = self.answers[tuple(ids[mask.bool()].tolist())][: settings["max_new_tokens"]]
            rows.append([*ids.tolist(), *answer, *[settings["pad_token_id"]] * (TOKENS - len(answer))])
        return torch.tensor(rows)


def heldout(folder: Path, model: Path) -> tuple[list[Pair], list[int]]:
    """The held-out questions as pairs, and the tokens that end an answer."""
    chat = Chat(loading.load_tokenizer(model), DataPart(path="pairs.jsonl"))
    pairs = []
    for number, line in enumerate((folder / "heldout.jsonl").read_text().splitlines()):
        row = json.loads(line)
        ids = chat.encode(single_turn(row["prompt"], row["response"]))
        pairs.append(Pair(str(number), row["prompt"], row["response"], *ids, "heldout", row["reference"]))
    return pairs, chat.stop_token_ids


def test_the_exact_set_needs_the_same_parts_and_a_right_answer(tmp_path: Path) -> None:
    rows = [(True, "same parts"), (True, "same result"), (False, "same parts"), (False, "another result")]
    table = pa.Table.from_pylist([{"correct": correct, "reason": reason} for correct, reason in rows])
    pq.write_table(table, tmp_path / "heldout.parquet")
    assert exact_match(tmp_path / "heldout.parquet").exact_match.value == 1 / 2
    assert exact_set(tmp_path / "heldout.parquet").exact_match.value == 1 / 4


def test_an_oracle_answers_everything_rightly(tmp_path: Path, tiny_model: Path) -> None:
    write_folder(tmp_path, seed=0, questions=20)
    write_sql_pairs(Folder(tmp_path), tmp_path, Budget(len, 10_000))
    pairs, stops = heldout(tmp_path, tiny_model)
    write_pairs(pairs, tmp_path / "pairs.parquet")
    spec = EvaluateSpec(
        policy=Policy(model=Artifact.of(tiny_model)),
        evaluation=EvaluationPart(benchmarks=[]),
        data=None,
        pairs=Artifact.of(tmp_path / "pairs.parquet"),
        answer_pattern=None,
        stop_token_ids=stops,
        chat_template_kwargs={},
        template_date=datetime.date(2024, 7, 26),
        max_new_tokens=TOKENS,
        dtype="float32",
        seed=0,
        verification=VerificationPart(kind="sql", databases=str(tmp_path / "databases")),
    )
    answers = {tuple(pair.prompt_ids): pair.response_ids for pair in pairs}
    oracle = Oracle(tiny_model, answers)
    write_answers(tmp_path / "heldout.parquet", spec, oracle, pairs, 16)
    assert exact_match(tmp_path / "heldout.parquet").exact_match.value == 1.0
    assert exact_set(tmp_path / "heldout.parquet").exact_match.value == 1.0
    first, second = pairs[0], pairs[1]  # of these, each has the other's answer
    oracle.answers = answers | {
        tuple(first.prompt_ids): second.response_ids,
        tuple(second.prompt_ids): first.response_ids,
    }
    write_answers(tmp_path / "heldout.parquet", spec, oracle, pairs, 16)
    assert exact_match(tmp_path / "heldout.parquet").exact_match.value == pytest.approx(78 / 80)
