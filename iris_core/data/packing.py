"""Packed, prefix-shared rows: several [prompt | annotated | synthetic] groups in one row, each prompt computed once.

A response sees its prompt and itself; positions restart after the prompt; there is no padding. For a model that cannot be
told so (a state-space model, say) the same row is computed as separate sequences, [prompt | response] each. A row's tensors are

    input_ids, position_ids   [tokens]
    sources, targets          [response tokens]: where each response token is predicted from, and which it is
    lengths                   [groups, sums]: over how many of these each sum runs: a response, or one of its two pieces
    pairs                     [groups]: which pair each group is

and `parts` says, as plain numbers, how many tokens each group's prompt and each of its responses have, `packing` which way it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from iris_core.config import Packing

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Token ids of one prompt and the responses to it: annotated, synthetic, the initial model's.

    Attributes:
        cut: so many tokens of the first response have a sum, and the rest of it another; None: it has one sum.
    """

    prompt: list[int]
    responses: tuple[list[int], ...]
    cut: int | None = None

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))

    def computed(self, packing: Packing) -> int:
        """Tokens that a model computes: the prompt once, or once for each response."""
        prompts = 1 if packing == "packed" else len(self.responses)
        return prompts * len(self.prompt) + sum(map(len, self.responses))

    def first(self, responses: int) -> Group:
        """The same prompt with the first `responses` only."""
        return replace(self, responses=self.responses[:responses])

    @property
    def sums(self) -> list[int]:
        """Over how many tokens each sum of log-probs runs: [annotated, synthetic, …], or [cut, rest, synthetic, …]."""
        lengths = [len(response) for response in self.responses]
        if self.cut is None:
            return lengths
        head = min(self.cut, lengths[0])
        return [head, lengths[0] - head, *lengths[1:]]


def pack(lengths: Sequence[int], tokens_per_row: int) -> list[list[int]]:
    """First-fit decreasing: which groups go into which row so that no row exceeds `tokens_per_row`.

    A group longer than that has a row of its own. Deterministic; rows keep their groups in ascending order.

    Args:
        lengths: tokens of each group.
        tokens_per_row: budget.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((row for row, room in enumerate(free) if room >= lengths[index]), None)
        if place is None:
            rows.append([])
            free.append(tokens_per_row)
            place = len(rows) - 1
        rows[place].append(index)
        free[place] -= lengths[index]
    return [sorted(row) for row in rows]


def build_rows(groups: Sequence[Group], pairs: Sequence[int], tokens_per_row: int, packing: Packing) -> list[Row]:
    """Rows of some of the pairs, under a budget of computed tokens.

    Args:
        groups: of all pairs.
        pairs: which of them.
        tokens_per_row: the budget.
        packing: how the rows are computed.
    """
    packed = pack([groups[pair].computed(packing) for pair in pairs], tokens_per_row)
    chosen = [[pairs[place] for place in places] for places in packed]
    return [build_row([groups[pair] for pair in row], row, packing) for row in chosen]


def build_row(groups: Sequence[Group], pairs: Sequence[int], packing: Packing = "packed") -> Row:
    """One row.

    Args:
        groups: what the row holds, as many responses in each; no prompt is empty.
        pairs: the index of each group's pair.
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
        for response in group.responses:
            start = len(ids)
            sources += [last_of_prompt, *range(start, start + len(response) - 1)][: len(response)]
            targets += response
            ids += response
            positions += range(len(group.prompt), len(group.prompt) + len(response))
    row = {
        "input_ids": ids,
        "position_ids": positions,
        "sources": sources,
        "targets": targets,
        "pairs": list(pairs),
    }
    tensors = {name: torch.tensor(values, dtype=torch.long) for name, values in row.items()}
    parts = [[len(group.prompt), *map(len, group.responses)] for group in groups]
    lengths = torch.tensor([group.sums for group in groups])
    return {**tensors, "lengths": lengths, "parts": parts, "packing": packing}


def sequences(row: Row) -> Iterator[tuple[Tensor, slice]]:
    """The separate sequences of a row, in the order of its targets: token ids, and the places that predict the response."""
    start = 0
    for prompt_tokens, *responses in row["parts"]:
        prompt = row["input_ids"][start : start + prompt_tokens]
        start += prompt_tokens
        for length in responses:
            if length:
                ids = torch.cat([prompt, row["input_ids"][start : start + length]])
                yield ids, slice(prompt_tokens - 1, prompt_tokens + length - 1)
            start += length
