"""Held-out prompts: which of them can be checked, and the Parquet file with their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from iris_core.common.errors import DataError
from iris_core.common.parquet import write_parquet
from iris_core.data.pairs import Pair
from iris_core.evaluation.answers import answer
from iris_core.modeling import loading
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.verification.patterns import extract

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("annotated", pa.string()),
        ("response", pa.string()),
        ("correct", pa.bool_()),
    ]
)


def checkable(pattern: str, pairs: list[Pair]) -> list[Pair]:
    """The held-out `pairs` with an annotated response in which `pattern` finds an answer.

    Raises:
        DataError: there are pairs, and it finds an answer in none.
    """
    found = [pair for pair in pairs if extract(pattern, pair.response) is not None]
    if pairs and not found:
        raise DataError(
            f"data.answer_pattern: {pattern!r} is found in no annotated held-out answer, such as "
            f"{pairs[0].response[-80:]!r}: fix the pattern, or leave it out"
        )
    return found


def write_answers(path: Path, spec: EvaluateSpec, lm: Any, pairs: list[Pair], batch_size: int) -> None:
    """Answers the prompts of `pairs` greedily, compares with the annotated answers and writes a row for each pair.

    Args:
        path: the Parquet file.
        spec: answer pattern, most tokens of an answer, stop tokens.
        lm: from `harness.open_model`.
        pairs: from `checkable`.
        batch_size: of the benchmarks; twice as many prompts are answered together.
    """
    assert spec.answer_pattern is not None
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    prompts = [pair.prompt_ids for pair in pairs]
    answers = answer(lm, prompts, spec.max_new_tokens, spec.stop_token_ids, 2 * batch_size)
    rows = []
    for pair, token_ids in zip(pairs, answers, strict=True):
        response = tokenizer.decode(token_ids, skip_special_tokens=True)
        correct = extract(spec.answer_pattern, response) == extract(spec.answer_pattern, pair.response)
        rows.append(
            {
                "prompt_id": pair.prompt_id,
                "prompt": pair.prompt,
                "annotated": pair.response,
                "response": response,
                "correct": correct,
            }
        )
    write_parquet(path, pa.Table.from_pylist(rows, SCHEMA))
