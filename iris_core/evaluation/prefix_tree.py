"""Log-likelihood requests packed into rows in which every shared prefix occurs once.

The harness's requests share long prefixes: four choices follow one question, and one set of examples precedes many
questions. Here the token sequences of all requests form a tree (a trie). A row holds a part of it in depth-first order;
each token attends to its ancestors, and its position is its depth. The log-probabilities are those of separate
forward passes, for a fraction of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROW_TOKENS = 512  # on a CPU, where masked attention between unrelated tokens costs time


@dataclass
class Row:
    """One forward pass.

    Attributes:
        input_ids: tokens in depth-first order.
        positions: depth of each token.
        ends: for each token, one past its last descendant.
        sources: index of the token that each scored token is predicted from.
        targets: the scored tokens.
        owners: index of the request that each scored token belongs to.
    """

    input_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def mask(self) -> Tensor:
        """The attention mask: each token attends to itself and its ancestors. Boolean, shape [1, 1, tokens, tokens]."""
        index = torch.arange(len(self))
        within = index[:, None] < torch.tensor(self.ends)[None, :]
        return (within & (index[None, :] <= index[:, None]))[None, None]


@dataclass(frozen=True)
class Request:
    """Score `continuation` after `context`; neither is empty."""

    context: list[int]
    continuation: list[int]

    def inputs(self, max_length: int) -> list[int]:
        """The model's input: all but the last token, truncated on the left to `max_length`."""
        return (self.context + self.continuation)[:-1][-max_length:]


def rows(requests: Sequence[Request], max_length: int, row_tokens: int = ROW_TOKENS) -> Iterator[Row]:
    """Packs `requests` into rows of up to `row_tokens`, or twice the tokens of a request that is long itself.

    Neighbours in sorted order share their longest prefixes, so the requests are taken in that order.
    """
    inputs = [request.inputs(max_length) for request in requests]
    row, path, before = Row(), list[int](), list[int]()
    for owner in sorted(range(len(requests)), key=inputs.__getitem__):
        tokens = inputs[owner]
        shared = _shared(before, tokens)
        if len(row) and len(row) + len(tokens) - shared > max(row_tokens, 2 * len(tokens)):
            _close(row, path, 0)
            yield row
            row, path, shared = Row(), [], 0
        _close(row, path, shared)
        del path[shared:]
        path += _append(row, tokens[shared:], shared)
        continuation = requests[owner].continuation
        row.sources += path[-len(continuation) :]
        row.targets += continuation
        row.owners += [owner] * len(continuation)
        before = tokens
    if len(row):
        _close(row, path, 0)
        yield row


def _shared(one: list[int], other: list[int]) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def _append(row: Row, tokens: list[int], depth: int) -> range:
    """Appends `tokens` below the row's current path, the first at `depth`; returns their indices."""
    start = len(row)
    row.input_ids += tokens
    row.positions += range(depth, depth + len(tokens))
    row.ends += [0] * len(tokens)
    return range(start, len(row))


def _close(row: Row, path: list[int], depth: int) -> None:
    """Sets the end of the subtrees of the tokens of `path` from `depth` on: tokens that follow are not below them."""
    for index in path[depth:]:
        row.ends[index] = len(row)
