"""Rows of shared prefixes: every scored token sees what it would see in a row of its own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_core.evaluation.prefix_tree import Request, Row, rows

pytestmark = pytest.mark.unit
tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def branch(row: Row, index: int) -> list[int]:
    """The tokens that the token at `index` sees, by the row's mask."""
    return [row.input_ids[i] for i in row.mask()[0, 0, index].nonzero()[:, 0].tolist()]


@settings(max_examples=60)
@given(
    pairs=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12),
    row_tokens=st.sampled_from([1, 8, 100]),
)
def test_every_scored_token_sees_what_it_would_see_alone(
    pairs: list[tuple[list[int], list[int]]], row_tokens: int
) -> None:
    requests = [Request(*pair) for pair in pairs]
    scored: dict[int, list[int]] = {}
    for row in rows(requests, 100, row_tokens):
        for source, target, owner in zip(row.sources, row.targets, row.owners, strict=True):
            before = requests[owner].context + scored.setdefault(owner, [])
            assert branch(row, source) == before
            assert row.positions[source] == len(before) - 1
            scored[owner].append(target)
    assert [scored[owner] for owner in range(len(requests))] == [request.continuation for request in requests]


def test_a_shared_question_occurs_once() -> None:
    # 10 tokens of question; choices [1], [2] need no input of their own, [3, 4] and [3, 5] share their first
    question = list(range(10, 20))
    (row,) = rows([Request(question, choice) for choice in ([1], [2], [3, 4], [3, 5])], 100)
    assert len(row) == 11
    assert row.positions == list(range(11))


def test_rows_keep_to_their_budget() -> None:
    requests = [Request([a, *range(20)], [b]) for a in range(30) for b in range(4)]  # 21 tokens each
    found = list(rows(requests, 100, row_tokens=64))
    assert all(len(row) <= 64 for row in found)
    assert sum(map(len, found)) == 30 * 21


def test_a_long_question_is_not_repeated_for_its_choices() -> None:
    requests = [Request(list(range(100)), [choice, choice]) for choice in range(19)]
    assert [len(row) for row in rows(requests, 1000, row_tokens=64)] == [119]


def test_long_prompts_are_cut_on_the_left() -> None:
    (row,) = rows([Request(list(range(50)), [7, 8])], max_length=10)
    assert row.input_ids == [*range(41, 50), 7]
    assert row.positions == list(range(10))
