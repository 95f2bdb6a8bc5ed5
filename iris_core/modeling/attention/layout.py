"""How a packed row is laid out, and what the kinds of attention derive from that: once a row, for all layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Parts = list[list[int]]
BLOCK = 128  # queries or keys that FlexAttention looks at together


@dataclass(frozen=True)
class Layout:
    """The parts of a row.

    Attributes:
        parts: of each group, the tokens of its prompt and of each response; they add up to the row.
        device: where the row is.
    """

    parts: Parts
    device: torch.device
    _masks: dict[int | None, BlockMask] = field(default_factory=dict, compare=False, repr=False)

    def window(self, asked: int | None) -> int | None:
        """The window of a layer, if any response of the row reaches beyond it."""
        longest = max(prompt + max(responses) for prompt, *responses in self.parts)
        return asked if asked and asked < longest else None

    def mask(self, window: int | None) -> BlockMask:
        """FlexAttention's mask."""
        if window not in self._masks:
            self._masks[window] = flex_mask(self.parts, self.device, window)
        return self._masks[window]

    @cached_property
    def seen(self) -> Seen:
        """The sequences of a varlen attention."""
        return sequences(self.parts, self.device)


def blocks(parts: Parts) -> Iterator[tuple[slice, slice]]:
    """Each block's tokens, and where the prompt before them lies that they see, too (nowhere for the first block of a group)."""
    start = 0
    for prompt_tokens, first, *others in parts:
        prompt = slice(start, start + prompt_tokens)
        own = slice(start, prompt.stop + first)
        yield slice(start, start), own
        for length in others:
            own = slice(own.stop, own.stop + length)
            if length:
                yield prompt, own
        start = own.stop


@dataclass(frozen=True)
class Seen:
    """A row as sequences whose queries follow each other in the row, while keys of a prompt are repeated for each response.

    Query i of a sequence sees its first (keys - queries + i + 1) keys.

    Attributes:
        tokens: which token of the row each key is, shape [keys].
        query_starts: first query of each sequence, and the number of all, int32, shape [sequences + 1].
        key_starts: the same of keys.
        most_queries: of a sequence.
        most_keys: of a sequence.
        own: the key that each token of the row is in its own sequence, shape [tokens].
        copies: the keys that tokens of prompts are in the sequences of further responses, as often as there are any; 0 for other
            tokens; shape [copies, tokens].
        copied: 1 where there is such a key, else 0; shape [copies, tokens, 1, 1].
    """

    tokens: Tensor
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int
    own: Tensor
    copies: Tensor
    copied: Tensor


def sequences(parts: Parts, device: torch.device) -> Seen:
    """`Seen` of a row: a prompt with its first response is one sequence, every other response one with the prompt before it."""
    total, further = sum(map(sum, parts)), len(parts[0]) - 2
    own = torch.empty(total, dtype=torch.long)
    copies, copied = torch.zeros(2, further, total, dtype=torch.long)
    tokens, queries, keys = [], [0], [0]
    most_keys = number = 0
    for prompt, block in blocks(parts):
        before = prompt.stop - prompt.start
        number = number + 1 if before else 0
        if before:
            copies[number - 1, prompt] = torch.arange(keys[-1], keys[-1] + before)
            copied[number - 1, prompt] = 1
        tokens += [torch.arange(part.start, part.stop) for part in (prompt, block)]
        length = before + block.stop - block.start
        own[block] = torch.arange(keys[-1] + before, keys[-1] + length)
        queries.append(block.stop)
        keys.append(keys[-1] + length)
        most_keys = max(most_keys, length)
    query_starts, key_starts = torch.tensor([queries, keys], dtype=torch.int32)
    return Seen(
        torch.cat(tokens).to(device),
        query_starts.to(device),
        key_starts.to(device),
        int(query_starts.diff().max()),
        most_keys,
        own.to(device),
        copies.to(device),
        copied[..., None, None].to(device),
    )


def flex_mask(parts: Parts, device: torch.device, window: int | None = None) -> BlockMask:
    """A query sees a key of its group that is not later, within the window, and belongs to the prompt or to the same response.

    Which blocks anybody sees is found from the parts' lengths: nothing of the size [tokens, tokens] is held.
    """
    lengths = torch.tensor(parts)
    part = torch.arange(lengths.numel())
    prompt = part // lengths.shape[1] * lengths.shape[1]
    part_of = part.repeat_interleave(lengths.flatten())
    tokens = len(part_of)
    held = torch.zeros(-(-tokens // BLOCK), len(part))  # tokens of each part in each block
    held.index_put_((torch.arange(tokens) // BLOCK, part_of), torch.ones(tokens), accumulate=True)
    related = (part[:, None] == part) | (prompt[:, None] == part)
    pairs = held @ related.float() @ held.T  # of a query and a key, whichever comes first
    whole = (pairs == BLOCK**2).tril(-1) if window is None else torch.zeros_like(pairs).bool()
    some = (pairs > 0).tril() & ~whole
    part_of, prompt_of = part_of.to(device), prompt[part_of].to(device)
    position = _positions(parts).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        other = part_of[key]
        related = (query >= key) & ((other == part_of[query]) | (other == prompt_of[query]))
        return related if window is None else related & (position[query] - position[key] < window)

    listed = (side for dense in (some, whole) for side in _listed(dense, device))
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens))


def _positions(parts: Parts) -> Tensor:
    """Where each token of the row stands in its prompt with its response."""
    runs = [
        torch.arange(start, start + length)
        for prompt, *responses in parts
        for start, length in ((0, prompt), *((prompt, length) for length in responses))
    ]
    return torch.cat(runs)


def _listed(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each row of a Boolean matrix, how many are true, and where (the others after them); for one batch and head."""
    places = blocks.int().argsort(dim=-1, descending=True, stable=True)
    counts = blocks.sum(dim=-1)
    return counts.int()[None, None].to(device), places.int()[None, None].to(device)
