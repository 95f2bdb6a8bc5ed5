"""Held-out prompts: which of them can be checked, and the Parquet file with their answers.

A verifier checks the answers where there is one; else those are correct that match the annotated ones exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from iris_core.common.errors import DataError
from iris_core.common.parquet import write_parquet
from iris_core.data.judged import case_of
from iris_core.data.pairs import Pair
from iris_core.evaluation.answers import answer
from iris_core.modeling import loading
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.verification.patterns import extract
from iris_core.verification.verdicts import Verdict
from iris_core.verification.verifier import open_verifier

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("annotated", pa.string()),
        ("response", pa.string()),
        ("correct", pa.bool_()),
        ("verdict", pa.string()),  # of a verifier, as is the reason
        ("reason", pa.string()),
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
    """Answers the prompts of `pairs` greedily, checks the answers and writes a row for each pair.

    Args:
        path: the Parquet file.
        spec: verifier, answer pattern, most tokens of an answer, stop tokens.
        lm: from `harness.open_model`.
        pairs: those that can be checked.
        batch_size: of the benchmarks; twice as many prompts are answered together.
    """
    tokenizer = loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code)
    prompts = [pair.prompt_ids for pair in pairs]
    answers = answer(lm, prompts, spec.max_new_tokens, spec.stop_token_ids, 2 * batch_size)
    responses = [tokenizer.decode(token_ids, skip_special_tokens=True) for token_ids in answers]
    if spec.verification.judges:
        truncated = [len(token_ids) >= spec.max_new_tokens for token_ids in answers]
        checked = [
            {"correct": found.verdict == "right", **vars(found)} for found in _judge(spec, pairs, responses, truncated)
        ]
    else:
        checked = [{"correct": _matches(spec, *each)} for each in zip(pairs, responses, strict=True)]
    rows = [
        {
            "prompt_id": pair.prompt_id,
            "prompt": pair.prompt,
            "annotated": pair.response,
            "response": response,
            **found,
        }
        for pair, response, found in zip(pairs, responses, checked, strict=True)
    ]
    write_parquet(path, pa.Table.from_pylist(rows, SCHEMA))


def _matches(spec: EvaluateSpec, pair: Pair, response: str) -> bool:
    """Whether the answer in `response` is that of the annotated response."""
    assert spec.answer_pattern is not None
    return extract(spec.answer_pattern, response) == extract(spec.answer_pattern, pair.response)


def _judge(spec: EvaluateSpec, pairs: list[Pair], responses: list[str], truncated: list[bool]) -> list[Verdict]:
    """The verifier's verdict on each response. One that it cannot judge is not correct.

    Raises:
        VerificationError: it does not work.
    """
    settings, pattern = spec.verification, spec.answer_pattern
    cases = [
        case_of(pair, response, settings, pattern, truncated=cut)
        for pair, response, cut in zip(pairs, responses, truncated, strict=True)
    ]
    with open_verifier(settings, pattern) as verifier:
        return verifier.verify(cases)
