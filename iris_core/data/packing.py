"""Packed rows: several [prompt | annotated | synthetic] groups in one row, with each prompt computed once.

A response sees its prompt and itself. Positions restart after the prompt. There is no padding. Some models cannot take
such a row, for example those with a state. For them the row is computed as separate sequences, [prompt | response].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from iris_core.config import Packing

Segments = list[list[int]]  # of each group: tokens of its prompt, then of each of its responses


@dataclass(frozen=True, eq=False)
class Row:
    """Groups that one forward pass computes, as tensors.

    Attributes:
        input_ids: token ids, shape [tokens].
        position_ids: position of each token in its prompt with its response, shape [tokens].
        sources: index of the token that predicts each response token, shape [response tokens].
        targets: id of each response token, shape [response tokens].
        lengths: how many response tokens each sum of log-probs covers, see `Group.sums`, shape [groups, sums].
        pairs: index of the pair that each group comes from, shape [groups].
        segments: lengths of prompts and responses; together they are the row.
        scored: which tokens of each response have a log-prob, see `Group.scored`.
        packing: how the row is computed.
    """

    input_ids: Tensor
    position_ids: Tensor
    sources: Tensor
    targets: Tensor
    lengths: Tensor
    pairs: Tensor
    segments: Segments
    scored: list[list[slice]]
    packing: Packing

    def to(self, device: torch.device, non_blocking: bool = True) -> Row:
        """The row with its tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Group:
    """Token ids of one prompt and of its responses: annotated, synthetic, the initial model's.

    Attributes:
        prompt: token ids.
        responses: token ids of each.
        cut: the first `cut` tokens of the first response have one sum of log-probs, the rest another; None: one sum.
        scored_from: the first token of each response that is in its sum; those before it are read only. None: all are.
    """

    prompt: list[int]
    responses: tuple[list[int], ...]
    cut: int | None = None
    scored_from: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))

    def computed_tokens(self, packing: Packing) -> int:
        """Tokens that a model computes: the prompt counts once, or once for each response that has tokens."""
        prompts = 1 if packing == "packed" else max(1, sum(map(bool, self.responses)))
        return prompts * len(self.prompt) + sum(map(len, self.responses))

    def first(self, responses: int) -> Group:
        """The same prompt with the first `responses` only."""
        kept = None if self.scored_from is None else self.scored_from[:responses]
        return replace(self, responses=self.responses[:responses], scored_from=kept)

    @property
    def scored(self) -> list[slice]:
        """Which tokens of each response have a log-prob."""
        starts = self.scored_from or (0,) * len(self.responses)
        return [slice(start, len(response)) for start, response in zip(starts, self.responses, strict=True)]

    @property
    def sums(self) -> list[int]:
        """Tokens of each sum of log-probs: [annotated, synthetic, …], or [cut, rest, synthetic, …]."""
        lengths = [part.stop - part.start for part in self.scored]
        if self.cut is None:
            return lengths
        head = min(self.cut, lengths[0])
        return [head, lengths[0] - head, *lengths[1:]]


def pack(lengths: Sequence[int], tokens_per_row: int, ranks: int = 1) -> list[list[int]]:
    """Distributes groups over rows by first-fit decreasing, so that no row exceeds `tokens_per_row`.

    A group that is longer gets a row of its own. The result is deterministic. Groups of a row are in ascending order.
    Where several ranks share the rows, they get equally many, of about the same tokens, the longest first.

    Args:
        lengths: tokens of each group.
        tokens_per_row: budget.
        ranks: that share the rows, each taking the next one in turn.

    Returns:
        Indices of the groups of each row; fewer rows than a multiple of `ranks` only where there are too few groups.
    """
    rows = _first_fit(lengths, tokens_per_row)
    return rows if ranks == 1 else _balanced(lengths, tokens_per_row, ranks, -(-len(rows) // ranks) * ranks)


def _first_fit(lengths: Sequence[int], tokens_per_row: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[int] = []
    for index in _longest_first(lengths):
        place = next((row for row, room in enumerate(free) if room >= lengths[index]), None)
        if place is None:
            rows.append([])
            free.append(tokens_per_row)
            place = len(rows) - 1
        rows[place].append(index)
        free[place] -= lengths[index]
    return [sorted(row) for row in rows]


def _balanced(lengths: Sequence[int], tokens_per_row: int, ranks: int, count: int) -> list[list[int]]:
    """`count` rows, or more by multiples of `ranks` until no row is too long: each group joins the shortest row."""
    rows: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for index in _longest_first(lengths):
        place = tokens.index(min(tokens))
        if rows[place] and tokens[place] + lengths[index] > tokens_per_row:
            return _balanced(lengths, tokens_per_row, ranks, count + ranks)
        rows[place].append(index)
        tokens[place] += lengths[index]
    order = sorted(range(count), key=lambda row: -tokens[row])
    return [sorted(rows[row]) for row in order if rows[row]]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def build_rows(
    groups: Sequence[Group], pairs: Sequence[int], tokens_per_row: int, packing: Packing, ranks: int = 1
) -> list[Row]:
    """The rows of some pairs, within a budget of computed tokens.

    Args:
        groups: of all pairs.
        pairs: indices of the pairs to take.
        tokens_per_row: the budget.
        packing: how the rows are computed.
        ranks: that share the rows.
    """
    packed = pack([groups[pair].computed_tokens(packing) for pair in pairs], tokens_per_row, ranks)
    selected = [[pairs[index] for index in indices] for indices in packed]
    return [build_row([groups[pair] for pair in row], row, packing) for row in selected]


def build_row(groups: Sequence[Group], pairs: Sequence[int], packing: Packing = "packed") -> Row:
    """One row.

    Args:
        groups: all with the same number of responses; no prompt is empty.
        pairs: index of the pair that each group comes from.
        packing: how the row is computed.
    """
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    for group in groups:
        ids += group.prompt
        positions += range(len(group.prompt))
        last_of_prompt = len(ids) - 1
        for response, scored in zip(group.responses, group.scored, strict=True):
            start = len(ids)
            sources += [last_of_prompt, *range(start, start + len(response) - 1)][scored]
            targets += response[scored]
            ids += response
            positions += range(len(group.prompt), len(group.prompt) + len(response))
    return Row(
        input_ids=_integers(ids),
        position_ids=_integers(positions),
        sources=_integers(sources),
        targets=_integers(targets),
        lengths=_integers([group.sums for group in groups]),
        pairs=_integers(list(pairs)),
        segments=[[len(group.prompt), *map(len, group.responses)] for group in groups],
        scored=[group.scored for group in groups],
        packing=packing,
    )


def _integers(values: list[int] | list[list[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def separate_sequences(row: Row) -> Iterator[tuple[Tensor, slice]]:
    """Each [prompt | response] of a row, by order of its targets: token ids, and tokens that predict the response."""
    start = 0
    for (prompt_tokens, *responses), parts in zip(row.segments, row.scored, strict=True):
        prompt = row.input_ids[start : start + prompt_tokens]
        start += prompt_tokens
        for length, scored in zip(responses, parts, strict=True):
            if length:
                ids = torch.cat([prompt, row.input_ids[start : start + length]])
                yield ids, slice(prompt_tokens - 1 + scored.start, prompt_tokens - 1 + length)
            start += length
